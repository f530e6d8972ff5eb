"""Logistic noise: the formulas that the binary concrete, hard concrete and rectified logistic gates share.

All of these are monotone maps of y ~ Logistic(log_alpha, 1), that is y = logit(u) + log_alpha. The stretched concrete
variable is x = gamma + (zeta - gamma) sigmoid(y / beta). KL divergences do not change under a monotone map, so they are
computed on y, where they have a closed form; no quadrature is needed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from paring.gates.relax.relaxation import logit

_nodes, _weights = np.polynomial.legendre.leggauss(32)
RULE: tuple[list[float], list[float]] = ((_nodes / 2 + 0.5).tolist(), (_weights / 2).tolist())  # on (0, 1)


def stretched_cdf(x: Tensor, log_alpha: Tensor, beta: float, gamma: float, zeta: float) -> Tensor:
    """P(stretched concrete <= x) = sigmoid(beta logit((x - gamma) / (zeta - gamma)) - log_alpha), 0 / 1 outside."""
    inside = (x > gamma) & (x < zeta)
    s = torch.where(inside, (x - gamma) / (zeta - gamma), 0.5)
    inner = torch.sigmoid(beta * torch.logit(s) - log_alpha)
    return torch.where(inside, inner, (x >= zeta).to(inner.dtype))


def stretched_quantile(p: Tensor, log_alpha: Tensor, beta: float, gamma: float, zeta: float) -> Tensor:
    """Inverse of `stretched_cdf` in x: gamma + (zeta - gamma) sigmoid((logit(p) + log_alpha) / beta)."""
    return torch.sigmoid((torch.logit(p) + log_alpha) / beta) * (zeta - gamma) + gamma


def stretched_mean(log_alpha: Tensor, beta: float, gamma: float, zeta: float) -> Tensor:
    """E[clip(x, 0, 1)] = integral over (0, 1) of P(x > v) dv, by Gauss-Legendre.

    The variable is t = logit((v - gamma) / (zeta - gamma)), the integrand sigmoid(log_alpha - beta t) (zeta - gamma)
    sigmoid'(t). It is analytic up to |Im t| = pi min(1, 1/beta), and panels of at most 8 min(1, 1/beta) make 32 nodes
    each exact to rounding. Infinite ends are cut where sigmoid' < 1e-17.
    """
    low = logit(-gamma / (zeta - gamma)) if gamma < 0 else -40.0
    high = logit((1 - gamma) / (zeta - gamma)) if zeta > 1 else 40.0
    panels = math.ceil((high - low) * max(1.0, beta) / 8)
    width = (high - low) / panels
    node, weight = (torch.tensor(v, dtype=log_alpha.dtype, device=log_alpha.device) for v in RULE)
    starts = torch.arange(panels, dtype=log_alpha.dtype, device=log_alpha.device)
    t = low + width * (starts[:, None] + node)
    height = width * (zeta - gamma) * weight * torch.sigmoid(t) * torch.sigmoid(-t)
    return (height * torch.sigmoid(log_alpha[..., None, None] - beta * t)).sum((-2, -1))


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(Logistic(a, 1) || Logistic(b, 1)) = (a - b) coth((a - b) / 2) - 2."""
    return 2 * _x_coth_x_minus_1((a - b) / 2)


def censored_kl(a: Tensor, b: Tensor, low: float, high: float) -> Tensor:
    """KL of Logistic(a, 1) from Logistic(b, 1), both censored: outside (low, high) only "below" or "above" is seen.

    With r = ln q - ln p: Q_below r_below + Q_above r_above + Q_between E[r | between]. The density ratio satisfies
    exp(r(y) / 2) = affine function of the cdf Q(y), so that r / 2 is the log of a variable that is uniform under q
    between its two end values, and the mean of the log of a uniform variable is elementary:
    E[r | between] = (r(low) + r(high)) / 2 + 2 (h coth h - 1) with h = (r(high) - r(low)) / 4.
    """
    q_below, p_below = logsigmoid(low - a), logsigmoid(low - b)
    q_above, p_above = logsigmoid(a - high), logsigmoid(b - high)
    r_low = (q_below - p_below) + (logsigmoid(a - low) - logsigmoid(b - low))
    r_high = (q_above - p_above) + (logsigmoid(high - a) - logsigmoid(high - b))
    between = torch.sigmoid(high - a) * torch.sigmoid(a - low) * -math.expm1(low - high)
    inner = (r_low + r_high) / 2 + 2 * _x_coth_x_minus_1((r_high - r_low) / 4)
    return q_below.exp() * (q_below - p_below) + q_above.exp() * (q_above - p_above) + between * inner


def _x_coth_x_minus_1(x: Tensor) -> Tensor:
    """X coth(x) - 1 >= 0, by its Taylor series where the direct form would cancel."""
    small = x.abs() < 0.25
    far = torch.where(small, 1.0, x)
    square = torch.where(small, x, 0.0).square()
    series = torch.zeros_like(x)
    for coefficient in (-1382 / 638512875, 2 / 93555, -1 / 4725, 2 / 945, -1 / 45, 1 / 3):
        series = (series + coefficient) * square
    return torch.where(small, series, far / torch.tanh(far) - 1)
