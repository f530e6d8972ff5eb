"""An experiment that compresses what another one trained: bytes of the file against error, decoded from the bytes."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.comparison import upper_bound
from paring.cli.config import plain
from paring.cli.experiment import RESULT, SMALL, Experiment, working_in
from paring.cli.results import Results, Row
from paring.compression import Compressor, Training, compress
from paring.compression.tensors import is_binary, unique, weights_of
from paring.compression.through_file import bits_per_weight
from paring.core.default_loss import cross_entropy
from paring.data import Dataset
from paring.files import load as load_net
from paring.methods import Binarize
from paring.models import build
from paring.train import evaluate, write_atomic


@dataclass(frozen=True)
class Compression(Experiment):
    """A compressor at one operating point, on the network that the experiment without it trains.

    Validation examples are the data of the bound; the compressor learns from the training examples.

    Args:
        compressor: what compresses.
        increase: how much the validation loss may grow; None for any.
        small_bits: see `pr.compress`.
        lr: learning rate of learning compressors.
        share: part of the loss that follows the given network's outputs (distillation); 0 for none.
        temperature: of the distillation.
    """

    _: KW_ONLY
    compressor: Compressor
    increase: float | None = None
    small_bits: int | None = 6
    lr: float = 1e-3
    share: float = 0.0
    temperature: float = 2.0

    @property
    def source(self) -> Experiment:
        """The experiment that trains the network."""
        return Experiment(
            self.model, self.data, self.method, self.recipe, None, self.validation, self.drop_inputs, self.examples,
            self.norm_scales,
        )  # fmt: skip

    @property
    def label(self) -> str:
        return self.compressor.name.lower()

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        done = self.result(root)
        if done is not None:
            return done
        if not self.validation:
            raise ValueError(
                "Compression(validation=0): a compressor's bound is a bound on validation examples; give some"
            )
        data = data or self.dataset()
        before = self.source.run(root, progress=progress, data=data)
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with working_in(folder):
            done = self.result(root)
            if done is not None:
                return done
            write_atomic(folder / "config.json", json.dumps(plain(self), indent=2) + "\n")
            row = self._compressed(root, data, before)
            write_atomic(folder / RESULT, json.dumps(row, indent=2) + "\n")
        return row

    def _compressed(self, root: Path, data: Dataset, before: Row) -> Row:
        device = torch.device(self.recipe.device)
        train, validation, test = (part.to(device) for part in (data.train, data.validation, data.test))
        net = load_net(lambda: self._architecture(data), root / self.source.name / SMALL).to(device).eval()
        if self.recipe.channels_last and train.x.dim() == 4:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            train = replace(train, x=train.x.contiguous(memory_format=torch.channels_last))
        teacher = _outputs(net, train.x) if self.share and self.compressor.trains else None
        batch, seed = self.recipe.batch, self.recipe.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            started, cpu = time.perf_counter(), time.process_time()
            found = compress(
                net,
                list(zip(validation.x.split(1000), validation.y.split(1000), strict=True)),
                cross_entropy,
                max_loss_increase=math.inf if self.increase is None else self.increase,
                compressor=self.compressor,
                training=Training.of(
                    F.cross_entropy, train.x, train.y, batch=batch, lr=self.lr, seed=seed, teacher=teacher,
                    share=self.share, temperature=self.temperature,
                ),
                error=_wrong,
                max_error_increase=math.inf,
                example=train.x[:2],
                small_bits=self.small_bits,
            )  # fmt: skip
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        weights, given = (weights_of(one, binary=True) for one in (found.net, net))
        per_weight = bits_per_weight(found.net)
        return {
            "run": self.key,
            "model": self.model,
            "data": self.data,
            "method": self.label,
            "seed": seed,
            "epochs": self.recipe.epochs,
            "architecture": f"{found.bytes:,} bytes",
            "error": evaluate(found.net, test)[1],
            "validation_error": 100 * (found.error or 0.0),
            "validation_loss": found.loss,
            "dense_error": before["error"],
            "dense_validation_error": 100 * (found.base_error or 0.0),
            "dense_validation_loss": found.base_loss,
            "bytes": found.bytes,
            "dense_bytes": 4 * before["dense_parameters"],
            "one_bit_bytes": _one_bit_bytes(net),
            "ratio": 4 * before["dense_parameters"] / found.bytes,
            "nonzeros": sum(int((w != 0).sum()) for w in weights.values()),
            "binary": {name: bool(torch.equal(w, weights[name])) for name, w in given.items() if is_binary(w)},
            "layers": {
                name: {"bits": per_weight[name], "kind": "conv" if w.dim() > 2 else "dense", "nonzeros": int((w != 0).sum())}
                for name, w in weights.items()
            },
            "curve": [[step.bytes, 100 * (step.error or 0.0)] for step in found.steps],
            "within": found.chosen is not None,
            "train_seconds": before["train_seconds"],
            "compress_seconds": round(seconds, 3),
            "compress_cpu_seconds": round(cpu_seconds, 3),
            "threads": torch.get_num_threads(),
            "source": "measured",
        }  # fmt: skip

    def _architecture(self, data: Dataset) -> nn.Module:
        """An untrained network of the modules that the source ends with."""
        net = build(self.model, shape=data.shape, classes=data.classes)
        return self.method.swapped(net) if isinstance(self.method, Binarize) else net


def mark_zero_loss(results: Results) -> Results:
    """Say which rows are at zero loss.

    For each network and compressor that is the operating point with the fewest bytes that is not worse by more than a margin:
    the one-sided 95 % upper bound of the difference of validation errors, each network's after minus before, is at most one
    standard error of the dense networks (of all seeds). A point of one seed has no such bound.

    A row's compressor is its method up to a colon, what follows is the operating point.
    """
    rows: list[Row] = [{**row} for row in results.rows]
    measured = [row for row in rows if row["source"] == "measured" and "dense_validation_error" in row]
    dense: dict[tuple[str, str], dict[int, float]] = {}
    for row in measured:
        dense.setdefault((row["model"], row["data"]), {})[row["seed"]] = row["dense_validation_error"]
    for key in {(row["model"], row["data"], row["method"].partition(":")[0]) for row in measured}:
        mine = [r for r in measured if (r["model"], r["data"], r["method"].partition(":")[0]) == key]
        limit = _standard_error(list(dense[key[:2]].values()))
        points = {row["method"]: [r for r in mine if r["method"] == row["method"]] for row in mine}
        fit = {
            name: statistics.fmean(r["bytes"] for r in rs)
            for name, rs in points.items()
            if upper_bound([r["validation_error"] - r["dense_validation_error"] for r in rs]) <= limit
        }
        best = min(fit, key=lambda name: fit[name]) if fit else None
        for row in mine:
            row["zero_loss"] = row["method"] == best
    return replace(results, rows=rows)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _wrong(net: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    wrong: Tensor = net(pair[0]).argmax(1) != pair[1]
    return wrong.double().mean()


@torch.no_grad()
def _outputs(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part) for part in x.split(1000)])


def _one_bit_bytes(net: nn.Module) -> int | None:
    """The network with its binary weights packed at one bit each, everything else as it is; None without binary weights."""
    binary = {name for name, weight in weights_of(net, binary=True).items() if is_binary(weight)}
    if not binary:
        return None
    sizes = unique(net).items()
    return sum((t.numel() + 7) // 8 + 4 * len(t) if n in binary else t.numel() * t.element_size() for n, t in sizes)
