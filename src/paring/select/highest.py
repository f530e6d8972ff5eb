"""The highest entries of a tensor, without sorting it."""

from __future__ import annotations

import torch
from torch import Tensor


def top(score: Tensor, keep: int) -> Tensor:
    """Boolean mask of the `keep` highest entries; among equals the first ones, so the same input gives the same mask.

    As a stable descending sort ranks them, nan first, but in linear time.

    Args:
        score: any shape.
        keep: how many; below 0 is none, more than there are is all.
    """
    flat = score.detach().flatten()
    if not 0 < keep < len(flat):
        return torch.full_like(score, keep > 0, dtype=torch.bool)
    lowest = flat.kthvalue(len(flat) - keep + 1).values
    nan = flat.isnan()
    above, equal = (nan & ~lowest.isnan()) | (flat > lowest), torch.where(lowest.isnan(), nan, flat == lowest)
    first = equal.cumsum(0) <= keep - above.sum()
    return (above | (equal & first)).view(score.shape)
