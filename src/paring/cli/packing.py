"""`paring pack`: a run, or tensors on disk, as a `.pare` file: without loss, or as small as a bound on the loss allows."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from paring.cli.arguments import read
from paring.cli.bytes_progress import BytesProgress
from paring.cli.command import CommandError, set_threads
from paring.cli.compress_progress import CompressProgress
from paring.cli.compressor_argument import COMPRESSORS, parse_compressor
from paring.cli.human import exact, percent, size
from paring.cli.job_file import check_there
from paring.cli.pack_job import pack_job
from paring.cli.trained_network import given, network_of
from paring.compression import Combined, Compressor, Objective, Stage, Training, compress
from paring.core.default_loss import cross_entropy
from paring.core.unwrap import gated_names
from paring.data import NAMES, Dataset, Split
from paring.data import load as load_data
from paring.files import Shards, pack, unpack
from paring.methods import L0, Budget
from paring.models import MODELS, build
from paring.train import evaluate


@dataclass(frozen=True)
class PackArguments:
    """What to pack, and what it may lose.

    Args:
        what: a job file (of paring prune), a run's folder, a .safetensors file, or a folder of .safetensors files of one model.
        out: the .pare file.
        max_loss_increase: how much the loss may grow; nothing packs every number as it is.
        max_error_increase: how many percentage points the error may grow besides; inf keeps the loss alone.
        compressor: how to compress when something may be lost: a name, with settings after a colon; calibrated_rounding for a job
            file, else smallest.
        units: first switch whole units off, by L0 gates trained for ten epochs, until this share of the parameters is left,
            and remove them exactly; then compress what is left. 1 keeps all units.
        lr: learning rate of compressors that learn.
        distillation: part of the loss of compressors that learn that follows the given network's outputs, from 0 to 1.
        model: the network, where `what` does not say it.
        data: the data set, where `what` does not say it.
        split: the examples on which the loss is kept: validation (set aside) or train. Never the test set.
        validation: examples set aside from training; 0 takes what the run set aside, or a tenth.
        test: print the test error of the decoded network once, for information; nothing is chosen by it.
        signed_zeros: keep -0.0 apart from 0.0.
        threads: CPU threads; 0 uses all.
        quiet: show no progress.
    """

    what: Path
    out: Path
    max_loss_increase: float | None = None
    max_error_increase: float = 0.0
    compressor: str = ""
    units: float = 1.0
    lr: float = 1e-3
    distillation: float = 0.5
    model: str = ""
    data: str = ""
    split: Literal["validation", "train"] = "validation"
    validation: int = 0
    test: bool = False
    signed_zeros: bool = False
    threads: int = 0
    quiet: bool = False


def pack_command(words: Sequence[str]) -> int:
    """Run `paring pack`."""
    options = read(
        PackArguments,
        words,
        first="what",
        prog="paring pack",
        description=(
            "Write a network to a .pare file (src/paring/files/pare/FORMAT.md). Without --max-loss-increase every number comes "
            "back exactly. With it, a compressor looks for the smallest file whose decoded network keeps the loss and the "
            "error within the bounds on the split; the file is decoded, measured again, and refused if they do not hold.\n\n"
            f"compressors: {', '.join(COMPRESSORS)}; settings follow a colon, lists joined by +. 'smallest' rounds to grids "
            "(seconds), then learns with a price of bits (minutes, with a bar; Ctrl-C writes the best so far). "
            "calibrated_rounding, grid_rounding, uniform, kmeans and adaptive_precision do not train\n\n"
            "a job file is ordinary Python with net(), batches() and, if wanted, loss(), validate(), metric(); paring prune --init "
            "writes one\n\nexamples:\n"
            "  paring pack job.py --out net.pare --max-loss-increase 0.01\n"
            "  paring pack runs/lenet_300_100-mnist-gmp-… --out net.pare\n"
            "  paring pack runs/lenet_300_100-mnist-gmp-… --out net.pare --max-loss-increase 0\n"
            "  paring pack runs/… --out net.pare --max-loss-increase 0 --compressor grid_rounding\n"
            "  paring pack runs/… --out net.pare --max-loss-increase 0.01 --compressor codebooks:values=8,zero=true\n"
            "  paring pack runs/… --out net.pare --max-loss-increase 0 --compressor entropy_rounding:rates=1e-6+3e-6,epochs=12\n"
            "  paring pack runs/… --out net.pare --max-loss-increase 0 --units 0.3 --compressor entropy_rounding\n"
            "  paring pack net.safetensors --out net.pare --model lenet_300_100 --data mnist --max-loss-increase 0\n"
            "  paring pack shards/ --out model.pare"
        ),
    )
    set_threads(options.threads)
    if options.what.suffix == ".py":
        check_there(options.what)
        return _job(options)
    row, shards = given(options.what)
    if gated := gated_names(shards):
        raise CommandError(
            f"{options.what} holds a network with its gates still in ({gated[0]!r}): call run.finish() first, and save the network "
            "that it returns, with pr.save"
        )
    _check_out(options.out)
    if options.max_loss_increase is None:
        whole = sum(value.numel() * value.element_size() for value in map(shards.__getitem__, shards))
        with BytesProgress("packing and checking", 2 * whole, not options.quiet) as progress:
            bytes_ = pack(
                shards,
                options.out,
                signed_zeros=options.signed_zeros,
                manifest=shards.manifest,
                watch=progress.told,
            )
        print(f"{options.out}: {exact(bytes_)} bytes, every number as it was; {_sizes(bytes_, _entries(shards))}")
        return 0
    for name in ("max_loss_increase", "max_error_increase"):
        if not getattr(options, name) >= 0:
            raise CommandError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 0")
    return _lossy(options, row, shards, parse_compressor(options.compressor or "smallest"))


def _check_out(out: Path) -> None:
    """Refuse what cannot be written, before the work."""
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder; name the .pare file")
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it first")


def _job(options: PackArguments) -> int:
    """Pack the network of a job file."""
    if options.max_loss_increase is None or not options.max_loss_increase >= 0:
        raise CommandError(
            f"{options.what} is a job file: say how much its loss may grow, --max-loss-increase 0.01 (at least 0; inf for any)"
        )
    plain = PackArguments(options.what, options.out)
    for name in ("max_error_increase", "units", "distillation", "model", "data", "split", "validation", "test"):
        if getattr(options, name) != getattr(plain, name):
            raise CommandError(
                f"--{name.replace('_', '-')} is for built-in networks; {options.what} is a job file and says itself what is kept, "
                "on which data: loss(), validate()"
            )
    _check_out(options.out)
    compressor = parse_compressor(options.compressor or "calibrated_rounding")
    return pack_job(
        options.what,
        options.out,
        options.max_loss_increase,
        compressor,
        lr=options.lr,
        signed_zeros=options.signed_zeros,
        quiet=options.quiet,
    )


def _lossy(options: PackArguments, row: dict[str, Any] | None, shards: Shards, compressor: Compressor) -> int:
    model, data = _named(options, row)
    split, training = _parts(options, row, data)
    if not len(split):
        raise CommandError(f"--split {options.split}: is empty; --validation sets examples aside")
    net = network_of(options.what, model, data, shards).eval()
    kept = list(zip(split.x.split(1000), split.y.split(1000), strict=True))
    objective, wrong = Objective(cross_entropy, kept), Objective(_wrong, kept)
    if options.units != 1:
        compressor = _after_removal(options.units, compressor)
    assert options.max_loss_increase is not None
    with (
        torch.random.fork_rng(devices=[]),
        CompressProgress(f"compressing {model}", not options.quiet) as progress,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "compress: .* comes back as it was given")  # in a line of its own below
        torch.manual_seed(int((row or {}).get("seed", 0)))  # the noise of gates: the same file every time
        found = compress(
            net,
            list(zip(training.x.split(100), training.y.split(100), strict=True)),
            max_loss_increase=options.max_loss_increase,
            compressor=compressor,
            validate=kept,
            training=_training(options, net, training, progress) if compressor.trains else None,
            error=_wrong,
            max_error_increase=options.max_error_increase / 100,
            example=split.x[:2],
            watch=progress.offered,
        )
    if not options.quiet and found.interrupted:
        print("interrupted: this is the best so far", file=sys.stderr)
    if found.reason:
        print(f"the network is written as it is: {found.reason}", file=sys.stderr)
    assert found.base_error is not None
    bound = found.base_loss + options.max_loss_increase
    most = found.base_error + options.max_error_increase / 100
    decoded, loss, error = net, math.nan, math.nan

    def check(fresh: Path) -> None:
        nonlocal decoded, loss, error
        decoded = unpack(lambda: _blank(found.net), fresh, max_bytes=1 << 62)
        loss, error = objective(decoded), wrong(decoded)
        for name, value, limit in (("loss", loss, bound), ("error", error, most)):
            if not value <= limit:
                raise RuntimeError(
                    f"the decoded network has {name} {value:.6g}, above {limit:.6g}; {options.out} was not written. "
                    f"Try another --compressor, or a larger --max-{name}-increase."
                )

    bytes_ = pack(found.net, options.out, signed_zeros=options.signed_zeros, accept=check)
    dense = build(model, shape=data.shape, classes=data.classes)
    print(f"{options.out}: {exact(bytes_)} bytes; {_sizes(bytes_, _weights(net))}")
    full = _weights(dense)
    if full[0] != _weights(net)[0]:
        print(f"against the dense {model} in float32 ({size(4 * full[0])}): {4 * full[0] / bytes_:.1f} times smaller")
    print(
        f"{options.split} ({exact(len(split))} examples)  loss {found.base_loss:.5f} -> {loss:.5f} (bound {bound:.5f})"
    )
    print(
        f"{options.split} error {percent(100 * found.base_error)} -> {percent(100 * error)} (bound {percent(100 * most)})"
    )
    if options.test:
        print(f"test error {percent(evaluate(net, data.test)[1])} -> {percent(evaluate(decoded, data.test)[1])}")
    return 0


def _wrong(net: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Share of wrong answers."""
    wrong: torch.Tensor = net(pair[0]).argmax(1) != pair[1]
    return wrong.double().mean()


def _after_removal(units: float, then: Compressor) -> Compressor:
    """Unit gates, removal, and then this compressor."""
    try:
        return Combined((Stage(L0(price=Budget(params=units), at="units")),), then)
    except ValueError as error:
        raise CommandError(f"--units {units:g}: {error}") from error


def _training(options: PackArguments, net: nn.Module, data: Split, progress: CompressProgress) -> Training:
    """What a compressor learns with: the answers, and the outputs of the network itself."""
    share = options.distillation
    if not 0 <= share <= 1:
        raise CommandError(f"--distillation {share:g}: is a part of the loss, from 0 to 1")
    with torch.no_grad():
        teacher = torch.cat([net(part) for part in data.x.split(1000)]) if share else None
    try:
        return Training.of(
            F.cross_entropy, data.x, data.y, lr=options.lr, teacher=teacher, share=share, temperature=4.0,
            watch=progress.trained,
        )  # fmt: skip
    except ValueError as error:
        raise CommandError(str(error)) from error


def _named(options: PackArguments, row: dict[str, Any] | None) -> tuple[str, Dataset]:
    """Network and data, from the options or the run."""
    told = row or {}
    model = {"lenet5": "lenet5_caffe"}.get(options.model, options.model) or told.get("model", "")
    name = options.data.replace("-", "_") or told.get("data", "")
    if model not in MODELS:
        raise CommandError(f"--model {model or '(missing)'}: name the network, one of {', '.join(MODELS)}")
    if name not in NAMES:
        raise CommandError(f"--data {name or '(missing)'}: name the data set, one of {', '.join(NAMES)}")
    return model, load_data(name, validation=_validation(options, row), seed=int(told.get("seed", 0)))


def _validation(options: PackArguments, row: dict[str, Any] | None) -> int | float:
    if options.split == "train" and not options.validation:
        return 0
    return options.validation or int((row or {}).get("validation", 0)) or 0.1


def _parts(options: PackArguments, row: dict[str, Any] | None, data: Dataset) -> tuple[Split, Split]:
    """Where the loss is kept, and what a compressor may learn from."""
    if options.split == "validation" and not (row or {}).get("validation") and not options.quiet:
        print("note: the network may have been trained on these validation examples", file=sys.stderr)
    return (data.validation if options.split == "validation" else data.train), data.train


def _blank(net: nn.Module) -> nn.Module:
    """A copy with other numbers, so that what is decoded comes from the file."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    return twin


def _entries(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Number of entries, and bytes."""
    found = [(value.numel(), value.element_size()) for value in map(tensors.__getitem__, tensors)]
    return sum(count for count, _ in found), sum(count * width for count, width in found)


def _weights(net: nn.Module) -> tuple[int, int]:
    parameters = list(net.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def _sizes(bytes_: int, whole: tuple[int, int]) -> str:
    count, given = whole
    return (
        f"{4 * count / bytes_:.1f} times smaller than float32 ({size(4 * count)}), {8 * bytes_ / max(1, count):.3f} bits per "
        f"number" + (f", {given / bytes_:.1f} times smaller than it was" if given != 4 * count else "")
    )
