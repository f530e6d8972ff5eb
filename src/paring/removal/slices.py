"""Cutting a tensor along several dimensions, its memory order kept (channels_last stays channels_last)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Dims = Mapping[int, Tensor]


def cut(tensor: Tensor, dims: Dims) -> Tensor:
    """Only these indices (int64) of these dimensions, with the strides in the same order."""
    if not dims:
        return tensor
    left = tensor.detach()
    for dim, keep in dims.items():
        left = left.index_select(dim, keep.to(tensor.device))
    if tensor.layout != torch.strided or tensor.dim() < 2:
        return left
    old, strides, step = tensor.stride(), [0] * tensor.dim(), 1
    for d in sorted(range(tensor.dim()), key=lambda d: (old[d], tensor.shape[d])):  # a size of 1 lies innermost
        strides[d] = step
        step *= left.shape[d]
    return torch.empty_strided(left.shape, strides, dtype=left.dtype, device=left.device).copy_(left)
