"""Tensors that repeat themselves along a dimension, stored once there: stride 0, as `expand` makes them.

Most labels and values are the same for all examples and at all positions, so that a rule that works on what is stored,
and expands the result, has a thousandth of the work. What is written into through a view cannot be stored so: see
`memory`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALL = 256  # entries that are not worth a look


def once(tensor: Tensor, *but: int) -> Tensor:
    """What is stored of a tensor: size 1 along dimensions of stride 0, `but` these (counted from the start)."""
    for d, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[d] > 1 and d not in but:
            tensor = tensor.narrow(d, 0, 1)
    return tensor


def shortened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape, with size 1 along dimensions where all of them are stored once."""
    for d in range(tensors[0].dim()):
        if tensors[0].shape[d] > 1 and all(t.stride(d) == 0 for t in tensors):
            tensors = tuple(t.narrow(d, 0, 1) for t in tensors)
    return tensors


def filled(shape: Sequence[int], number: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One number all over, stored once."""
    return torch.full((), number, dtype=dtype).expand(shape)


def unlabelled(shape: Sequence[int]) -> Tensor:
    """Labels where there is no unit."""
    return filled(shape, -1, torch.int64)


def carries(labels: Tensor) -> bool:
    """Is there a unit?"""
    return bool((once(labels) >= 0).any())


def either(left: Tensor, right: Tensor) -> Tensor:
    """The labels of the left, those of the right where it has none; one shape."""
    a, b = shortened(left, right)
    return torch.where(a >= 0, a, b).expand(left.shape)


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, stored once where all of them are."""
    parts = [once(t, dim) for t in tensors]
    shape = [max(sizes) for sizes in zip(*(p.shape for p in parts), strict=True)]
    whole = torch.cat([p.expand(*shape[:dim], p.shape[dim], *shape[dim + 1 :]) for p in parts], dim)
    return whole.expand(*tensors[0].shape[:dim], whole.shape[dim], *tensors[0].shape[dim + 1 :])


def settled(tensor: Tensor) -> Tensor:
    """The same numbers, stored once along every dimension where they repeat themselves bit by bit (or are all NaN)."""
    small = once(tensor)
    if small.numel() < SMALL:
        return tensor
    stored = small
    for d in reversed(range(small.dim())):
        if small.shape[d] > 1:
            first = small.narrow(d, 0, 1)
            if _same(small.narrow(d, 1, 1), first) and _same(small, first):
                small = first
    return tensor if small is stored else small.clone().expand(tensor.shape)


def _same(tensor: Tensor, first: Tensor) -> bool:
    if not tensor.is_floating_point():
        return bool((tensor == first).all())
    same = tensor.view(torch.int64) == first.view(torch.int64)  # zeros of another sign are other numbers
    return bool(same.all()) or bool((same | (tensor.isnan() & first.isnan())).all())
