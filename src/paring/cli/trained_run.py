"""A run of `paring train`, or a .safetensors file of a built-in network, as what `paring prune` prunes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paring.cli.command import CommandError
from paring.cli.experiment import SMALL
from paring.cli.job import Job
from paring.cli.meant import meant
from paring.cli.reading import read_json
from paring.cli.trained_network import given, network_of
from paring.core.plain_json import is_count
from paring.core.unwrap import gated_names
from paring.data import NAMES, Augment, Split
from paring.data import load as load_data
from paring.models import MODELS
from paring.train import evaluate

_BATCH = 100
_CONFIG = "config.json"


@dataclass(frozen=True)
class Batches:
    """A split in batches, in a new order each time, drawn from torch's global generator.

    Args:
        split: the examples.
        size: of a batch; the last one may be smaller.
        augment: moves and mirrors the images.
    """

    split: Split
    size: int
    augment: Augment

    def __len__(self) -> int:
        return -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.split)).split(self.size):
            yield self.augment(self.split.x[rows]), self.split.y[rows]


def run_job(what: Path, model: str = "", data: str = "") -> Job:
    """The network that a run trained, with its data, batches and augmentation.

    Args:
        what: the run's folder, or a .safetensors file.
        model, data: names, where `what` does not say them.

    Raises:
        CommandError: it holds no network, or the names are missing or unknown.
    """
    row, shards = given(what)
    if gated := gated_names(shards):
        raise CommandError(f"{what} holds a network with its gates still in ({gated[0]!r}): finish the run first")
    told = row or {}
    names = {
        "model": {"lenet5": "lenet5_caffe"}.get(model, model) or told.get("model", ""),
        "data": data.replace("-", "_") or told.get("data", ""),
    }
    known = {"model": [name for name in MODELS if name not in ("mlp", "wide_resnet")], "data": list(NAMES)}
    for option, name in names.items():
        if name not in known[option]:
            raise CommandError(
                f"--{option} {name or '(missing)'}: {meant(name, known[option])}choose one of {', '.join(known[option])}"
            )
    settings = _settings(what) if row is not None else {}
    validation = int(told.get("validation", 0))
    found = load_data(names["data"], validation=validation, seed=int(told.get("seed", 0)))
    net = network_of(what, names["model"], found, shards)
    augment = Augment(settings.get("crop", 0), settings.get("flip", False))

    def metric(net: nn.Module) -> float:
        return evaluate(net, found.test)[1]

    return Job(
        what.resolve().name,
        _digest(what),
        net,
        Batches(found.train, settings.get("batch", _BATCH), augment),
        metric=metric,
        validate=list(zip(found.validation.x.split(1000), found.validation.y.split(1000), strict=True)) or None,
        example=found.train.x[:2],
        said=("the metric is the test error in percent; nothing is chosen by it",),
        model=names["model"],
        data=names["data"],
        shape=found.shape,
        classes=found.classes,
        validation=validation,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Batch size and augmentation of a run, as far as its config says them in numbers that make sense."""
    path = folder / _CONFIG
    recipe = config.get("recipe") if path.exists() and isinstance(config := read_json(path), dict) else None
    if not isinstance(recipe, dict):
        return {}
    found = {name: recipe.get(name) for name in ("batch", "crop", "flip")}
    if not is_count(found["batch"], 1) or not is_count(found["crop"]) or not isinstance(found["flip"], bool):
        raise CommandError(f"{path}: 'recipe' holds no batch, crop and flip of a training")
    return found


def _digest(what: Path) -> str:
    """SHA-256 of the files that hold the network."""
    files = (
        [what] if what.is_file() else [what / SMALL] if (what / SMALL).exists() else sorted(what.glob("*.safetensors"))
    )
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()
