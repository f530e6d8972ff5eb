"""How much faster one network is than another, or that the times are too noisy to say.

Times are compared pair by pair: `ratio` is the median of the quotients, which a sample that was pre-empted cannot move,
and `low` to `high` is the 99 % interval of that median (order statistics, whatever the distribution). A ratio is
said when the interval is narrow, or lies well clear of 1 and is not wide; otherwise only the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from paring.cost.latency import Latency

_NARROW, _WIDE, _MISSED = 1.1, 1.5, 0.005


@dataclass(frozen=True)
class Comparison:
    """One network's time over another's; below 1 when the first is faster.

    ratio: median over pairs of samples. low, high: its 99 % interval. by: "clock", or "CPU time" where only that was calm
    enough to say something.
    """

    ratio: float
    low: float
    high: float
    by: str = "clock"

    @property
    def clear(self) -> bool:
        """Whether the ratio can be said: known to 10 %, or to a factor 1.5 and more than 10 % away from 1."""
        width = self.high / self.low if self.low > 0 else float("inf")
        aside = self.low > _NARROW or self.high < 1 / _NARROW
        return width <= _NARROW or (aside and width <= _WIDE)

    @property
    def said(self) -> float | None:
        """The ratio, None where the times are too noisy to say one."""
        return self.ratio if self.clear else None

    def __str__(self) -> str:
        if not self.clear:
            return f"too noisy to say ({self.low:.2f}× to {self.high:.2f}×)"
        return f"{self.ratio:.2f}×" + (" in CPU time" if self.by == "CPU time" else "")


def compare(a: Latency, b: Latency) -> Comparison:
    """The time of ``a`` over that of ``b``, by the clock; if that is too noisy, in CPU time where it is known and calm.

    Raises ``ValueError`` when they were not measured together.
    """
    by_clock = compare_times(a.runs, b.runs)
    if by_clock.clear or not a.cpu or not b.cpu or not (all(a.cpu) and all(b.cpu)):
        return by_clock
    by_cpu = compare_times(a.cpu, b.cpu, "CPU time")
    return by_cpu if by_cpu.clear else by_clock


def compare_times(a: Sequence[float], b: Sequence[float], by: str = "clock") -> Comparison:
    """The same of two lists of times that were taken in turns.

    Raises ``ValueError`` when they are not equally long, or empty.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} runs cannot be paired; measure both in one call of latency")
    quotients = sorted(one / other for one, other in zip(a, b, strict=True))
    cut = _cut(len(quotients))
    return Comparison(median(quotients), quotients[cut], quotients[-1 - cut], by)


def _cut(count: int) -> int:
    """How many samples on either side lie outside the interval of the median."""
    missed, cut = 0.5**count, 0
    while missed + comb(count, cut + 1) * 0.5**count <= _MISSED:
        cut += 1
        missed += comb(count, cut) * 0.5**count
    return cut
