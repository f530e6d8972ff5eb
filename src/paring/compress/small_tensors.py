"""The last bytes: biases and norms on a grid of few values, as far as the bound allows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paring.compress.tensors import small_of

if TYPE_CHECKING:
    from paring.compress.task import Task

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


@torch.no_grad()
def on_grid(net: nn.Module, bits: int) -> nn.Module:
    """A copy with its biases, norms and other small parameters on grids of so many bits; statistics stay as they are.

    Args:
        net: any module.
        bits: at least 2.
    """
    twin = copy.deepcopy(net)
    for tensor in small_of(twin).values():
        if isinstance(tensor, nn.Parameter):
            tensor.copy_(gridded(tensor, bits))
    return twin


def gridded(tensor: Tensor, bits: int) -> Tensor:
    """The nearest multiples of a step, at most 2^bits - 1 of them around zero; the step is a float16.

    Args:
        tensor: any shape, finite.
        bits: at least 2.
    """
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    step = torch.tensor(largest / (2 ** (bits - 1) - 1)).half().to(tensor.dtype)
    if not 0 < float(step) < float("inf"):
        return tensor.detach().clone()
    return ((tensor.detach() / step).round() * step).half().to(tensor.dtype) + 0.0
