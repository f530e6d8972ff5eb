"""Experiments on hard-threshold networks: what is trained, and what is measured of its gradient rule afterwards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evidence.hard.agreement import TargetQuality, target_quality
from evidence.hard.mismatch import Mismatch, mismatches
from paring.cli.experiment import SMALL, Experiment
from paring.data import Dataset
from paring.files import load
from paring.methods import Binarize

EXAMPLES, UNITS = 256, 16  # training examples and units of each layer that the rule is measured on


@dataclass(frozen=True)
class HardExperiment(Experiment):
    """Its row also says which units it has, the time of an epoch, and how its rule fares on the trained network.

    On the first 256 training examples, as means over the hard layers: `cosine` and `linear` (see `evidence.hard.mismatch`),
    `right` and `captured` of the targets (see `evidence.hard.agreement`). `hard_layers` and `target_quality` have it layer by
    layer. A network without sign or staircase has none.
    """

    def _row(self, folder: Path, data: Dataset, progress: bool) -> dict[str, Any]:
        row = super()._row(folder, data, progress)
        found: list[Mismatch] = []
        quality: tuple[TargetQuality, ...] = ()
        if isinstance(self.method, Binarize):
            method = self.method
            net = load(lambda: method.swapped(self.network(data)), folder / SMALL).to(self.recipe.device)
            shown = [part[:EXAMPLES].to(self.recipe.device) for part in (data.train.x, data.train.y)]
            found = mismatches(net, shown[0], shown[1], units=UNITS, seed=self.recipe.seed)
            if found:
                quality = target_quality(net, shown[0], shown[1], seed=self.recipe.seed)
        return {
            **row,
            "units": units_of(self.method),
            "epoch_seconds": round(row["train_seconds"] / max(1, row["epochs"]), 3),
            "epoch_cpu_seconds": round(row["train_cpu_seconds"] / max(1, row["epochs"]), 3),
            **{key: _mean(getattr(one, key) for one in found) for key in ("cosine", "linear")},
            **{key: _mean(getattr(one, key) for one in quality) for key in ("right", "captured")},
            "hard_layers": [_plain(asdict(one)) for one in found],
            "target_quality": [_plain(asdict(one)) for one in quality],
        }


def units_of(method: object) -> str:
    """What the hidden units of a network trained with this method are: "sign", "2-bit", "3-bit", "saturated", "real"."""
    if not isinstance(method, Binarize) or method.activations == "none":
        return "real"
    if method.activations in ("sign", "saturated_relu"):
        return method.activations.removesuffix("_relu")
    return f"{math.ceil(math.log2(method.steps + 1))}-bit"


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return round(statistics.fmean(finite), 5) if finite else None


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists, and None for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
