"""Uniform quantisation: every weight to the nearest of 2^b - 1 multiples of a step, one step per tensor, no training.

Where the widest of the given widths breaks the bound it goes on to wider ones, and to a step for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from paring.compression.step_sizes import largest, short, spread, until_within, while_within
from paring.compression.task import Compressor, Step, Task, working_copy
from paring.compression.tensors import gridded, weights_of

WIDEST = 12


@dataclass(frozen=True)
class Uniform(Compressor):
    """Uniform quantisation.

    Args:
        bits: widths b to try, each at least 2; the widest first, until the bound breaks. Where that one breaks it, wider
            ones are tried, up to 12, and widths with a step for each row.

    Raises:
        ValueError: a width below 2 or above 11, or none.
    """

    bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)

    def __post_init__(self) -> None:
        if not self.bits or not all(2 <= b <= 11 for b in self.bits):
            raise ValueError(f"Uniform(bits={self.bits}): widths from 2 to 11")

    @torch.no_grad()
    def run(self, task: Task) -> None:
        given = sorted(self.bits, reverse=True)
        for number, bits in enumerate(given):
            twin = working_copy(task.net)
            for weight in weights_of(twin).values():
                weight.copy_(gridded(weight, bits))
            if not task.offer(twin, bits=bits).within:
                if number == 0:
                    self._wider(task, given)
                return

    def _wider(self, task: Task, given: list[int]) -> None:
        """Wider levels, and levels of each row."""
        wider = range(given[0] + 1, WIDEST + 1)
        until_within([partial(_offer, task, bits, False) for bits in wider])
        if until_within([partial(_offer, task, bits, True) for bits in (given[0], *wider)]) == 0:
            while_within([partial(_offer, task, bits, True) for bits in given[1:]])


def _offer(task: Task, bits: int, rows: bool) -> Step:
    twin = working_copy(task.net)
    for weight in weights_of(twin).values():
        step = short(spread(largest, weight, rows) / (2 ** (bits - 1) - 1))
        found = torch.where(step > 0, (weight / step).round() * step, 0.0) + 0.0  # no -0.0
        weight.copy_(found)
    return task.offer(twin, bits=bits, **({"per_row": 1} if rows else {}))
