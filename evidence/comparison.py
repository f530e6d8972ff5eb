"""Two ways at the same seeds: the mean difference, its interval by Student's t, and the word that follows from it.

Tables take their words from here: *ahead* and *behind* where the 95 % interval of the paired difference excludes zero, else
*level*. Lower is better, as for errors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from paring.cli.human import DASH

LEVEL = 0.95
Word = Literal["ahead", "level", "behind"]


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs.

    Attributes:
        mean: over the seeds that both have.
        half: half of the 95 % interval; infinite for one seed.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def word(self) -> Word:
        """What may be said of ours, when lower is better."""
        if abs(self.mean) <= self.half:
            return "level"
        return "ahead" if self.mean < 0 else "behind"

    def told(self, digits: int = 2) -> str:
        """Mean ± half; bold where the interval excludes zero."""
        mean = f"{self.mean:+.{digits}f}".replace("-", "−")
        if self.seeds == 1:
            return f"{mean} (one seed)"
        told = f"{mean} ± {self.half:.{digits}f}"
        return told if self.word == "level" else f"**{told}**"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The difference over the seeds that both have; None for none.

    Args:
        ours: outcome of every seed.
        theirs: the same.
    """
    found = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not found:
        return None
    return Difference(statistics.fmean(found), _width(found, (1 + LEVEL) / 2), len(found))


def told(ours: Mapping[int, float], theirs: Mapping[int, float], digits: int = 2) -> str:
    """`Difference.told`, or a dash where no seed is in both."""
    found = paired(ours, theirs)
    return DASH if found is None else found.told(digits)


def upper_bound(values: Sequence[float]) -> float:
    """One-sided 95 % upper bound of the mean; infinite for one value."""
    return statistics.fmean(values) + _width(values, LEVEL)


def _width(values: Sequence[float], quantile: float) -> float:
    if len(values) == 1:
        return math.inf
    factor: float = stdtrit(len(values) - 1, quantile)
    return factor * statistics.stdev(values) / math.sqrt(len(values))
