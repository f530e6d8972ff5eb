"""Uniform quantisation: every weight to the nearest of 2^b - 1 multiples of a step, one step per tensor, no training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paring.codec.compressors.small import gridded
from paring.codec.compressors.task import Compressor, Task, working_copy
from paring.codec.compressors.tensors import weights_of


@dataclass(frozen=True)
class Uniform(Compressor):
    """Uniform quantisation.

    Args:
        bits: widths b to try, each at least 2; the widest first, until the bound breaks.

    Raises:
        ValueError: a width below 2 or above 11, or none.
    """

    bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)

    def __post_init__(self) -> None:
        if not self.bits or not all(2 <= b <= 11 for b in self.bits):
            raise ValueError(f"Uniform(bits={self.bits}): widths from 2 to 11")

    @torch.no_grad()
    def run(self, task: Task) -> None:
        for bits in sorted(self.bits, reverse=True):
            twin = working_copy(task.net)
            for weight in weights_of(twin).values():
                weight.copy_(gridded(weight, bits))
            if not task.offer(twin, bits=bits).within:
                return
