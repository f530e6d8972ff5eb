"""The verdict on a search for tickets: which subnetworks match, which is the sparsest, the best, and what it cost.

A subnetwork is *matching* when its mean accuracy over seeds is at or above the dense one, within the dense network's
spread: mean error <= dense mean error + dense standard deviation over seeds. A network with all weights open is no
subnetwork, and one that was not trained to its end from every seed matches nothing. A *winning ticket* is a matching subnetwork
whose rewind point is the initialisation.

Three costs are told apart (a reviewer's request for Continuous Sparsification): the training epochs until the tickets of
all densities are known and trained, until that of one given density is, and until the sparsest matching one is; each as
sequential epochs (what waits for what) and in all, with wall-clock seconds in all. One search may give several tickets, and
what a search trained itself is not counted again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
_ROUNDING = 1e-9  # of means over different numbers of seeds, in percent


@dataclass(frozen=True)
class Level:
    """All seeds of one density.

    Attributes:
        density: mean share of the weights that is open.
        errors: test error of every seed, in percent.
        missing: seeds of the dense network whose search or training diverged.
        matching: see above.
        sequential: epochs that have to follow one another until this subnetwork is found and trained, mean over seeds.
        epochs: all epochs of that.
        seconds: seconds of training of that.
        controls: test errors of the controls by name.
    """

    density: float
    errors: tuple[float, ...]
    missing: int
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
        """The subnetwork of the lowest mean error, of those that could match if there are any; of equals the sparsest."""
        fit = [one for one in self.levels if one.density < 1 and not one.missing]
        return min(fit or self.levels, key=lambda one: (math.isnan(one.error), one.error, one.density))

    def at(self, density: float) -> Level | None:
        """The densest subnetwork at or below this density."""
        return max((one for one in self.levels if one.density <= density), key=lambda one: one.density, default=None)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for one value, nan where a value is no number."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def matches(density: float, errors: Sequence[float], bar: float, missing: Collection[int] = ()) -> bool:
    """Whether a subnetwork matches the dense network: some weights are closed, no seed is missing, the mean is below the bar."""
    return density < 1 and not missing and statistics.fmean(errors) <= bar + _ROUNDING


def judge(dense: Sequence[Row], tickets: Sequence[Row], *, winning: bool) -> Verdict:
    """Judge tickets against dense networks.

    Args:
        dense: rows of dense networks, one per seed, with "error" and, to see which tickets lack some, "seed".
        tickets: rows of trainings in isolation with "level" (which go together over seeds), "seed", "control", "error",
            "weight_density", "search" (which search found it), "search_epochs" and "search_seconds" (of the search until the
            mask was known), "epochs" and "train_seconds" (of its training), and, if so, "own" (the search goes on with
            this training, as IMP that rewinds does). An error of nan matches nothing, nor does a level with fewer seeds.
        winning: the rewind point is the initialisation.

    Raises:
        ValueError: there is no dense row, or no ticket, or a dense error is no number.
    """
    errors = tuple(float(row["error"]) for row in dense)
    found = [row for row in tickets if row["control"] == "ticket"]
    if not errors or not found:
        raise ValueError("a verdict needs at least one dense network and one ticket")
    if not all(map(math.isfinite, errors)):
        raise ValueError(f"an error of the dense networks is no number ({errors}), so there is nothing to compare with")
    bar = statistics.fmean(errors) + spread(errors)
    seeds = {row["seed"] for row in dense if "seed" in row}
    names = list(dict.fromkeys(row["level"] for row in found))
    levels = [_level([row for row in tickets if row["level"] == name], bar, seeds) for name in names]
    levels.sort(key=lambda one: -one.density)
    return Verdict(
        errors,
        tuple(levels),
        winning,
        sequential=max(level.sequential for level in levels),
        epochs=_in_all(found, "search_epochs", "epochs"),
        seconds=_in_all(found, "search_seconds", "train_seconds"),
    )


def _in_all(tickets: Sequence[Row], search: str, training: str) -> float:
    """Of all searches and trainings, mean over seeds: a search lasts until its last mask, or its last own training."""
    total = 0.0
    for name in dict.fromkeys(row["search"] for row in tickets):
        mine = [row for row in tickets if row["search"] == name]
        longest = 0.0
        for level in dict.fromkeys(row["level"] for row in mine):
            rows = [row for row in mine if row["level"] == level]
            before, after = (statistics.fmean(float(row[key]) for row in rows) for key in (search, training))
            own = all(row.get("own") for row in rows)
            longest = max(longest, before + own * after)
            total += 0.0 if own else after
        total += longest
    return total


def _level(rows: Sequence[Row], bar: float, seeds: set[int]) -> Level:
    tickets = [row for row in rows if row["control"] == "ticket"]
    errors = tuple(float(row["error"]) for row in tickets)
    epochs = statistics.fmean(row["search_epochs"] + row["epochs"] for row in tickets)
    controls = dict.fromkeys(row["control"] for row in rows if row["control"] != "ticket")
    density = statistics.fmean(float(row["weight_density"]) for row in tickets)
    missing = seeds - {row["seed"] for row in tickets}
    return Level(
        density=density,
        errors=errors,
        missing=len(missing),
        matching=matches(density, errors, bar, missing),
        sequential=epochs,
        epochs=epochs,
        seconds=statistics.fmean(row["search_seconds"] + row["train_seconds"] for row in tickets),
        controls={name: tuple(float(row["error"]) for row in rows if row["control"] == name) for name in controls},
    )
