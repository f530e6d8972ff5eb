"""Grids that are finer than those of a tensor's root mean square, and grids with a step for each row.

What `GridRounding` and `Uniform` go on to when their first steps break the bound. A step has eleven significant bits and a
level at most eleven more, so that every entry, level times step, is a float32 number exactly, and the file holds the levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paring.compression.task import Step
from paring.files.pare.levels import LARGEST_LEVEL

_BITS = 11


def spread(size: Callable[[Tensor], Tensor], weight: Tensor, rows: bool) -> Tensor:
    """A measure of the weights, of all or of each row, as a float64 tensor that broadcasts with the weight.

    Args:
        size: (n, m) -> (n,).
        weight: two dimensions or more.
        rows: one for each row.
    """
    flat = weight.detach().double()
    flat = flat.flatten(1) if rows else flat.reshape(1, -1)
    return size(flat).view(-1, *[1] * (weight.dim() - 1))


def mean_square(flat: Tensor) -> Tensor:
    """Root mean square along the last dimension; 0 for nothing."""
    return flat.square().sum(-1).div(max(1, flat.shape[-1])).sqrt()


def largest(flat: Tensor) -> Tensor:
    """Largest magnitude along the last dimension; 0 for nothing."""
    return flat.abs().amax(-1) if flat.numel() else flat.new_zeros(len(flat))


def short(step: Tensor) -> Tensor:
    """The next number up with eleven significant bits."""
    mantissa, exponent = torch.frexp(step)
    return torch.ldexp((mantissa * 2**_BITS).ceil(), exponent - _BITS)


def finest(weight: Tensor, rows: bool) -> Tensor:
    """The finest steps whose levels a file holds."""
    return spread(largest, weight, rows) / LARGEST_LEVEL


def until_within(offers: list[Callable[[], Step]]) -> int:
    """Make offers in turn until one keeps the bound; its number, or that of all offers when none does."""
    return next((number for number, offer in enumerate(offers) if offer().within), len(offers))


def while_within(offers: list[Callable[[], Step]]) -> None:
    """Make offers in turn until one breaks the bound."""
    for offer in offers:
        if not offer().within:
            return
