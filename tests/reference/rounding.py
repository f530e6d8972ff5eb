"""Optimal brain quantisation in a fixed order, as the formulas have it: an inverse for every column."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_in_turn(row: Tensor, moments: Tensor, bits: Tensor, price: float) -> Tensor:
    """Levels of one row in float64.

    Args:
        row: (columns,), divided by the step.
        moments: (columns, columns), damped.
        bits: of each level from -most to most.
        price: of a bit, in units of the mean cost.
    """
    left, most, columns = row.clone(), len(bits) // 2, len(row)
    costs = [1 / torch.linalg.inv(moments[j:, j:])[0, 0] for j in range(columns)]
    mean = torch.stack(costs).mean()
    levels = torch.zeros_like(row)
    for j in range(columns):
        near = float(left[j].round().clamp(-most, most))
        inner = near - (near > 0) + (near < 0)
        tried = [near, inner, 0.0]
        paid = [float(costs[j] * (left[j] - q) ** 2 + price * mean * bits[int(q) + most]) for q in tried]
        levels[j] = tried[paid.index(min(paid))]
        inverse = torch.linalg.inv(moments[j:, j:])
        left[j:] -= (left[j] - levels[j]) / inverse[0, 0] * inverse[0]
    return levels
