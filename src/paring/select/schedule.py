"""Schedules: plain values that map a step to a number.

Cubic      s_t = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3     sparsity of GMP (Zhu and Gupta 2017)
CosineDrop a/2 (1 + cos(pi t / T))                                  fraction to drop of RigL (Evci et al. 2020)
Geometric  b_T^(t / T)                                              temperature of Continuous Sparsification
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cubic:
    """Sparsity that rises fast at first and slowly at the end.

    Args:
        final: sparsity at the end, in [0, 1].
        initial: sparsity at the start, in [0, 1].
        begin: fraction of training at which it starts to rise.
        end: fraction of training at which it has arrived; it stays there.
        power: 3 in the paper.
    """

    final: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    power: float = 3.0

    def __post_init__(self) -> None:
        for name in ("final", "initial", "begin", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Cubic({name}={getattr(self, name)}): must lie in [0, 1]")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise ValueError(f"Cubic(power={self.power}): must be a positive number")
        if not self.begin < self.end:
            raise ValueError(f"Cubic(begin={self.begin}, end={self.end}): it has to begin before it ends")

    def __call__(self, fraction: float) -> float:
        """Sparsity when this fraction of training is over."""
        part = min(1.0, max(0.0, (fraction - self.begin) / (self.end - self.begin)))
        return float(self.final + (self.initial - self.final) * (1 - part) ** self.power)


@dataclass(frozen=True)
class CosineDrop:
    """Fraction of the kept weights that an update replaces, falling to zero.

    Args:
        start: fraction at the start (0.3 in RigL).
        end: fraction of training after which nothing is replaced any more.
    """

    start: float = 0.3
    end: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"CosineDrop(start={self.start}): must lie in (0, 1]")
        if not 0 < self.end <= 1:
            raise ValueError(f"CosineDrop(end={self.end}): must lie in (0, 1]")

    def __call__(self, fraction: float) -> float:
        """Fraction to replace when this fraction of training is over."""
        return 0.0 if fraction >= self.end else self.start / 2 * (1 + math.cos(math.pi * fraction / self.end))


@dataclass(frozen=True)
class Geometric:
    """A temperature that grows by the same factor in every step, from 1 to `final`.

    Args:
        final: at the end of a round (200 in the paper).
    """

    final: float = 200.0

    def __post_init__(self) -> None:
        if not (self.final >= 1 and math.isfinite(self.final)):
            raise ValueError(f"Geometric(final={self.final}): must be at least 1")

    def __call__(self, fraction: float) -> float:
        """Temperature when this fraction of the round is over."""
        return float(self.final ** min(1.0, max(0.0, fraction)))
