"""Rounding that corrects what it rounds: column by column, what one column loses the ones after it make up for.

    q_j = argmin over levels of  D_j (w_j - s q)^2 - price s^2 mean(D) log2 p_q,     w_k -= (w_j - s q_j) U_jk / U_jj,  k > j

U is the upper Cholesky factor of the inverse of the columns' second moments, D_j = 1 / U_jj^2. That is the optimal brain surgeon's
update of all that is not rounded yet (OBQ: Frantar, Alistarh, arXiv 2208.11580), in one fixed order, so that one factor
serves all rows (GPTQ: Frantar et al., arXiv 2210.17323). The price of a level's bits is ours, as the file is entropy coded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paring.files.pare.levels import LARGEST_LEVEL

LAZY = 64
"""Columns after which those behind are updated at once."""


def factor(moments: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factors of the inverse of damped second moments.

    Args:
        moments: (blocks, columns, columns), positive semidefinite but for noise.
        damping: added to the diagonal, in units of its mean.

    Returns:
        (blocks, columns, columns); doubled damping where rounding errors need it. The identity's for a block of zeros.
    """
    h = (moments + moments.mT) / 2
    size = h.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(0)
    h = torch.where((size > 0)[:, None, None], h, torch.eye(h.shape[-1], dtype=h.dtype, device=h.device))
    size = size.where(size > 0, torch.ones_like(size))
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    while True:
        lower, bad = torch.linalg.cholesky_ex(h + (damping * size)[:, None, None] * eye)
        if not bool(bad.any()):
            break
        damping *= 2
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper


def spared(factors: Tensor) -> Tensor:
    """D_j: what a squared error of column j costs after the columns behind it have made up for it.

    Args:
        factors: see `factor`.

    Returns:
        (blocks, columns).
    """
    return factors.diagonal(dim1=-2, dim2=-1).square().reciprocal()


def rounded_in_turn(weight: Tensor, factors: Tensor, bits: Tensor, price: float) -> Tensor:
    """Levels of the smallest cost, in units of the step.

    Args:
        weight: (blocks, rows, columns), divided by the step.
        factors: see `factor`.
        bits: (2 * most + 1,) of each level from -most to most.
        price: of a bit, in units of mean(D).

    Returns:
        q, of the weight's shape and type; whole numbers.
    """
    left, levels = weight.clone(), torch.empty_like(weight)
    cost = spared(factors)
    prices = price * bits.to(weight.dtype) * cost.mean()
    columns = weight.shape[-1]
    for start in range(0, columns, LAZY):
        end = min(start + LAZY, columns)
        part, lost = left[..., start:end].mT.contiguous(), torch.empty_like(left[..., start:end].mT)
        for j in range(start, end):
            now = part[:, j - start]
            q = _cheapest(now, prices, cost[:, j, None])
            levels[..., j] = q
            error = (now - q) / factors[:, j, j, None]
            lost[:, j - start] = error
            rest = factors[:, j, j + 1 : end]
            part[:, j - start + 1 :].sub_(rest[:, :, None] * error[:, None, :])
        left[..., end:] -= lost.mT @ factors[:, start:end, end:]
    return levels


def _cheapest(value: Tensor, prices: Tensor, cost: Tensor) -> Tensor:
    """The level of the smallest cost: the nearest, the next one towards zero, or zero."""
    most = len(prices) // 2
    near = value.round().clamp_(-most, most)
    inner = near - near.sign()
    zero = torch.zeros_like(near)
    best, found = _cost(value, near, prices, cost, most), near
    for other in (inner, zero):
        now = _cost(value, other, prices, cost, most)
        found = torch.where(now < best, other, found)
        best = torch.minimum(now, best)
    return found


def _cost(value: Tensor, level: Tensor, prices: Tensor, cost: Tensor, most: int) -> Tensor:
    return cost * (value - level).square() + prices[(level + most).long()]


def bits_of(levels: Tensor) -> Tensor:
    """-log2 of the share of each level, from -LARGEST_LEVEL to LARGEST_LEVEL; one that does not occur counts half."""
    counts = (
        torch.bincount(
            levels.flatten().long().clamp(-LARGEST_LEVEL, LARGEST_LEVEL) + LARGEST_LEVEL,
            minlength=2 * LARGEST_LEVEL + 1,
        ).double()
        + 0.5
    )
    return -(counts / counts.sum()).log2()
