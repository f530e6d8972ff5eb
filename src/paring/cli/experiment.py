"""One experiment: data, network, method, recipe; trained, finished, measured, in a folder named by its hash."""

from __future__ import annotations

import fcntl
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.cli.config import digest, plain
from paring.cli.freed_memory import keep_freed_memory
from paring.cli.reading import RunError, read_result
from paring.cli.rounds import epochs, keep_decided, rounds
from paring.core import Method, Stack
from paring.core.plain_json import shown
from paring.cost import Cost, Measured, measure
from paring.data import Dataset
from paring.data import load as load_data
from paring.files import save as save_net
from paring.gates import expected, support
from paring.methods import Dense
from paring.models import build, drawn_norm_scales
from paring.run import Run, attach
from paring.train import Fit, Recipe, evaluate, fit, write_atomic

RESULT = "result.json"
SMALL = "small.safetensors"


class Busy(RuntimeError):
    """Another process works in this run's folder."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a result; its hash names the run.

    Args:
        model: name of a builder in `paring.models.MODELS`.
        data: name of a data set.
        method: what the network may lose.
        recipe: how it is trained.
        finetune: train the small network on, after removal, with this recipe; None ends with the removal.
        validation: training examples set aside (the choice of settings looks at these, never at the test set).
        drop_inputs: cut input columns that nobody reads; by default when inputs are gated (see `Run.finish`).
        examples: look at no more than so many of each part of the data, to see that it works; 0 takes all.
        norm_scales: what the scales of BatchNorms begin as: "ones", or "uniform", drawn from (0, 1).
    """

    model: str
    data: str
    method: Method = field(default_factory=Dense)
    recipe: Recipe = field(default_factory=Recipe)
    finetune: Recipe | None = None
    validation: int = 0
    drop_inputs: bool | None = None
    examples: int = 0
    norm_scales: Literal["ones", "uniform"] = "ones"

    @property
    def key(self) -> str:
        """Hash of the config."""
        return digest(self)

    @property
    def label(self) -> str:
        """Short name of the method."""
        parts = self.method.methods if isinstance(self.method, Stack) else (self.method,)
        return "+".join("dense" if type(part) is Dense else type(part).__name__.lower() for part in parts)

    @property
    def name(self) -> str:
        """Folder name: readable parts and the hash."""
        return f"{self.model}-{self.data}-{self.label}-{self.key}"

    def dataset(self) -> Dataset:
        """The data, divided by the recipe's seed."""
        data = load_data(self.data, validation=self.validation, seed=self.recipe.seed)
        return data.few(self.examples, self.recipe.seed) if self.examples else data

    def network(self, data: Dataset) -> nn.Module:
        """The untrained network, initialised from the recipe's seed; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            net = build(self.model, shape=data.shape, classes=data.classes)
            return drawn_norm_scales(net) if self.norm_scales == "uniform" else net

    def result(self, root: Path) -> dict[str, Any] | None:
        """The finished result below `root`, or None.

        Raises:
            RunError: there is a result file, but it cannot be read, or it is that of another run.
        """
        path = root / self.name / RESULT
        found = read_result(path)
        if found is not None and found.get("run", self.key) != self.key:
            raise RunError(
                f"{path} holds the result of run {shown(found['run'])}, not of {self.key}; move it to where it came from"
            )
        return found

    def epoch_steps(self, data: Dataset) -> int:
        """Optimizer steps of one epoch."""
        return -(-len(data.train) // (self.recipe.batch * self.recipe.accumulate))

    def attached(self, data: Dataset, device: torch.device | str = "cpu") -> Run:
        """The method attached to a new network; random states stay as they were.

        It is as before training, but for masks that are decided while attaching by the loss: they look at other examples.

        Raises:
            ValueError: this method cannot train this network for so long.
        """
        net, epoch_steps = self.network(data).to(device), self.epoch_steps(data)
        x, y = data.train.x[:32].to(device), data.train.y[:32].to(device)
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            return attach(
                net,
                self.method,
                x[:2],
                steps=self.recipe.epochs * epoch_steps,
                epoch_steps=epoch_steps,
                loss=lambda twin: F.cross_entropy(twin(x), y),
            )

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        """Train (or resume), finish, measure on the test set once, and write the result; a finished one is only read.

        Args:
            root: folder of all runs.
            progress: show progress on stderr.
            data: the data set, when the caller holds it already.

        Raises:
            Busy: another process works on this run.
        """
        done = self.result(root)
        if done is not None:
            return done
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with working_in(folder):
            done = self.result(root)
            if done is not None:  # another process finished it a moment ago
                return done
            write_atomic(folder / "config.json", json.dumps(plain(self), indent=2) + "\n")
            data = data or self.dataset()
            row = self._row(folder, data, progress)
            gc.collect()  # a gated network refers to itself, so that it and the data it trained on would stay for some runs
            write_atomic(folder / RESULT, json.dumps(row, indent=2) + "\n")
        return row

    def _row(self, folder: Path, data: Dataset, progress: bool) -> dict[str, Any]:
        device = torch.device(self.recipe.device)
        net = self.network(data)
        label = f"{self.model} {self.label} seed {self.recipe.seed}"
        fitted = fit(net, self.method, data, self.recipe, folder=folder, progress=progress, label=label)
        dense = fitted.run.cost()
        with torch.no_grad():
            kept, hoped = fitted.run.cost(support), fitted.run.cost(expected)
        test = data.test.to(device)
        left = keep_decided(fitted.run, folder)
        several = []
        if self.method.rounds > 1:
            several = rounds(fitted, folder, replace(data, test=test), lambda: self.attached(data, device))
        gated_error = evaluate(fitted.net, test)[1] if self.finetune is None else None
        started = time.perf_counter()
        small = fitted.run.finish(drop_inputs=self.drop_inputs)
        finish_seconds = time.perf_counter() - started
        notes = fitted.run.report.notes if fitted.run.report is not None else ()
        seconds, cpu_seconds = fitted.seconds, fitted.cpu_seconds
        if self.finetune is not None:
            tuned = fit(
                small,
                Dense(),
                data,
                self.finetune,
                folder=folder / "finetune",
                progress=progress,
                label=f"{label}, fine-tuning",
            )
            small = tuned.run.finish(drop_inputs=self.drop_inputs)
            seconds, cpu_seconds = seconds + tuned.seconds, cpu_seconds + tuned.cpu_seconds
        save_net(small, folder / SMALL)
        real = measure(small, data.test.x[:1].to(device))
        row: dict[str, Any] = {
            "run": self.key,
            "model": self.model,
            "data": self.data,
            "shape": list(data.shape),
            "classes": data.classes,
            "method": self.label,
            "seed": self.recipe.seed,
            "epochs": epochs(fitted.rows) + (self.finetune.epochs if self.finetune else 0),
            "architecture": architecture(kept),
            "widths": widths(dense, real),
            "error": evaluate(small, test)[1],
            "train_error": evaluate(small, data.train.to(device))[1],
            "validation_error": evaluate(small, data.validation.to(device))[1] if len(data.validation) else None,
            "gated_error": gated_error,
            "parameters": int(real.parameters),
            "macs": real.macs,
            "adds": real.adds,
            "nonzeros": real.nonzeros,
            "bytes": (folder / SMALL).stat().st_size,
            "density": real.parameters / float(dense.parameters),
            "ratio": float(dense.parameters) / real.parameters,
            "dense_parameters": int(float(dense.parameters)),
            "dense_macs": int(float(dense.macs)),
            "support_parameters": float(kept.parameters),
            "support_macs": float(kept.macs),
            "expected_parameters": float(hoped.parameters),
            "expected_macs": float(hoped.macs),
            **left,
            "rounds": several,
            "notes": list(notes),
            "train_seconds": round(seconds, 3),
            "train_cpu_seconds": round(cpu_seconds, 3),
            "finish_seconds": round(finish_seconds, 3),
            "threads": torch.get_num_threads(),
            "source": "measured",
        }
        return row


def architecture(cost: Cost) -> str:
    """Kept maps of every convolution, then kept inputs of every linear layer: "20-25-45-462" as papers write it."""
    return "-".join(
        str(round(float(layer.outputs if layer.kind == "conv" else layer.inputs)))
        for layer in cost.rows
        if layer.kind in ("conv", "linear")
    )


def widths(dense: Cost, small: Measured) -> dict[str, list[int]]:
    """Units before and after, of every layer that is still there: {"fc1": [300, 57]}."""
    after = {row.name: row.units for row in small.rows if row.units is not None}
    before = {layer.name: round(float(layer.outputs)) for layer in dense.rows}
    return {name: [count, after[name]] for name, count in before.items() if name in after}


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, in a process that keeps its memory.

    Raises:
        Busy: another process holds it.
    """
    keep_freed_memory()
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"another process is training in {folder}; wait for it, or stop it") from error
        yield


def outputs_differ(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Largest absolute difference of the two networks' outputs on `x`, both in eval mode."""
    with torch.no_grad():
        return float((a.eval()(x) - b.eval()(x)).abs().max())


__all__ = ["RESULT", "SMALL", "Busy", "Experiment", "Fit", "architecture", "outputs_differ"]
