"""The last bytes: biases and norms on a grid of few values, as far as the bound allows."""

from __future__ import annotations

import torch

from paring.compression.task import Task
from paring.compression.tensors import on_grid

BITS = (8, 7, 6, 5, 4, 3)


@torch.no_grad()
def shrink_small(task: Task) -> None:
    """Offer the best network with its small tensors on coarser and coarser grids, until the bound breaks."""
    if task.best is None:
        return
    found, chosen = task.best
    for bits in BITS:
        step = task.offer_as_is(on_grid(found, bits), **chosen.settings, small_bits=bits)
        if not step.within:
            return
