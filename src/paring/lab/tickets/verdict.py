"""The verdict on a search for tickets: which subnetworks match, which is the sparsest, the best, and what it cost.

A subnetwork is *matching* when its mean accuracy over seeds is at or above the dense one, within the dense network's
spread: mean error <= dense mean error + dense standard deviation over seeds. A *winning ticket* is a matching subnetwork
whose rewind point is the initialisation.

Three costs are told apart (a reviewer's request for Continuous Sparsification): the training epochs until the tickets of
all densities are known and trained, until that of one given density is, and until the sparsest matching one is; each as
sequential epochs (what waits for what) and in all, with wall-clock seconds in all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Level:
    """All seeds of one density.

    Attributes:
        density: mean share of the weights that is open.
        errors: test error of every seed, in percent.
        matching: see above.
        sequential: epochs that have to follow one another until this subnetwork is found and trained, mean over seeds.
        epochs: all epochs of that.
        seconds: seconds of training of that.
        controls: test errors of the controls by name.
    """

    density: float
    errors: tuple[float, ...]
    matching: bool
    sequential: float
    epochs: float
    seconds: float
    controls: Mapping[str, tuple[float, ...]]

    @property
    def error(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.errors)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return spread(self.errors)


@dataclass(frozen=True)
class Verdict:
    """What a search found.

    Attributes:
        dense: test errors of the dense networks.
        levels: densest first.
        winning: whether the rewind point is the initialisation, so that matching subnetworks are winning tickets.
        sequential, epochs, seconds: until the subnetworks of all densities were found and trained.
    """

    dense: tuple[float, ...]
    levels: tuple[Level, ...]
    winning: bool
    sequential: float
    epochs: float
    seconds: float

    @property
    def bar(self) -> float:
        """Largest mean error that still matches."""
        return statistics.fmean(self.dense) + spread(self.dense)

    @property
    def sparsest(self) -> Level | None:
        """The matching subnetwork of the lowest density."""
        return min((level for level in self.levels if level.matching), key=lambda one: one.density, default=None)

    @property
    def best(self) -> Level:
        """The subnetwork of the lowest mean error; of equals the sparsest."""
        return min(self.levels, key=lambda one: (one.error, one.density))

    def at(self, density: float) -> Level | None:
        """The densest subnetwork at or below this density."""
        return max((one for one in self.levels if one.density <= density), key=lambda one: one.density, default=None)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def judge(dense: Sequence[Row], tickets: Sequence[Row], *, winning: bool, parallel: bool) -> Verdict:
    """Judge tickets against dense networks.

    Args:
        dense: rows of dense networks, one per seed, with "error".
        tickets: rows of trainings in isolation with "level" (which go together over seeds), "seed", "control", "error",
            "weight_density", "search_epochs", "search_seconds", "epochs", "train_seconds".
        winning: the rewind point is the initialisation.
        parallel: every level has a search of its own, so that searches can run at the same time; otherwise one search
            gives all levels, one after the other.

    Raises:
        ValueError: there is no dense row, or no ticket.
    """
    errors = tuple(float(row["error"]) for row in dense)
    found = [row for row in tickets if row["control"] == "ticket"]
    if not errors or not found:
        raise ValueError("a verdict needs at least one dense network and one ticket")
    bar = statistics.fmean(errors) + spread(errors)
    names = list(dict.fromkeys(row["level"] for row in found))
    levels = [_level([row for row in tickets if row["level"] == name], bar) for name in names]
    levels.sort(key=lambda one: -one.density)
    searches = [_mean(found, name, "search_epochs") for name in names]
    seconds = [_mean(found, name, "search_seconds") for name in names]
    trainings = [_mean(found, name, "epochs") for name in names]
    trained = sum(_mean(found, name, "train_seconds") for name in names)
    both = [a + b for a, b in zip(searches, trainings, strict=True)]
    return Verdict(
        errors,
        tuple(levels),
        winning,
        sequential=max(both),
        epochs=(sum(searches) if parallel else max(searches)) + sum(trainings),
        seconds=(sum(seconds) if parallel else max(seconds)) + trained,
    )


def _level(rows: Sequence[Row], bar: float) -> Level:
    tickets = [row for row in rows if row["control"] == "ticket"]
    errors = tuple(float(row["error"]) for row in tickets)
    epochs = statistics.fmean(row["search_epochs"] + row["epochs"] for row in tickets)
    controls = dict.fromkeys(row["control"] for row in rows if row["control"] != "ticket")
    return Level(
        density=statistics.fmean(float(row["weight_density"]) for row in tickets),
        errors=errors,
        matching=statistics.fmean(errors) <= bar,
        sequential=epochs,
        epochs=epochs,
        seconds=statistics.fmean(row["search_seconds"] + row["train_seconds"] for row in tickets),
        controls={name: tuple(float(row["error"]) for row in rows if row["control"] == name) for name in controls},
    )


def _mean(rows: Sequence[Row], level: Any, key: str) -> float:
    return statistics.fmean(float(row[key]) for row in rows if row["level"] == level)
