"""What open gates cost: the regularisers of Louizos, Welling, Kingma, ICLR 2018, arXiv 1712.01312.

With p_g = P(z_g != 0) (`Relaxation.prob_open`) and |g| the number of weights behind gate g:

    expected L0     sum_g |g| p_g                                           eq. 12, groups: eq. 16
    expected L2     1/2 sum_g p_g ||theta_g||^2                             eq. 15, groups: eq. 17
    spike and slab  sum_g KL(q(z_g) || p(z_g)) + sum_g p_g KL(q(theta_g | open) || p(theta_g | open))       eq. 21

The L2 term counts a weight by the probability that it is there at all, and not by E[z^2] (0.398 against 0.832 for hard
concrete at log_alpha = 0): that is the paper's design. None of the three contains a price: multiply by lambda, weight
decay or 1 / N yourself (the paper's lambda goes with a mean loss; the authors' command line takes lambda N).
Sums are made in float32 at least, and returned so, because a sum over a network overflows float16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expected_l0(prob: Tensor, size: Tensor | float) -> Tensor:
    """Expected number of nonzero weights: sum over gates of size * prob. Scalar, differentiable in prob.

    prob: P(z != 0) per gate, any shape. size: weights per gate, one number for all or a tensor of the same shape.
    Raises ValueError on a shape mismatch.
    """
    return (_like(prob, size, "size") * _wide(prob)).sum()


def expected_l2(prob: Tensor, weight_sq_sum: Tensor, *, detach: bool = False) -> Tensor:
    """Expected L2 cost of the weights that are there: 1/2 sum over gates of prob * weight_sq_sum. Scalar.

    prob: P(z != 0) per gate. weight_sq_sum: sum of squares of the weights of each gate, same shape.
    detach=True keeps this term from shrinking the gates (only weights get its gradient); the paper's is False.
    Raises ValueError on a shape mismatch.
    """
    p = _wide(prob.detach() if detach else prob)
    return (p * _like(prob, weight_sq_sum, "weight_sq_sum")).sum() / 2


def spike_and_slab(gate_kl: Tensor, prob: Tensor, slab_kl: Tensor | float) -> Tensor:
    """Complexity part of the variational bound for a spike-and-slab prior: sum of gate_kl + prob * slab_kl. Scalar.

    The spike at zero is common to prior and posterior and costs nothing, so a weight pays only when its gate is open.
    gate_kl: KL(q(z) || p(z)) per gate (`Relaxation.kl`). prob: P(z != 0), same shape. slab_kl: KL between posterior
    and prior of the weights behind an open gate, summed per gate: same shape, or one number. With a point estimate of
    the weights that KL is taken to be a constant cost lambda per open weight: pass lambda * |g|, and the result is
    lambda * expected_l0 + sum of gate_kl. Dropping gate_kl, never negative, leaves the L0 objective (eq. 22).
    Raises ValueError on a shape mismatch.
    """
    return (_like(prob, gate_kl, "gate_kl") + _wide(prob) * _like(prob, slab_kl, "slab_kl")).sum()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _like(prob: Tensor, value: Tensor | float, name: str) -> Tensor | float:
    """Value if it is a number or has one entry per gate; broadcasting would silently count gates many times."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != prob.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} but prob has shape {tuple(prob.shape)}: there must be one "
            f"entry per gate. Reshape {name} to {tuple(prob.shape)}, or sum it over the weights that share a gate."
        )
    return _wide(value) if value.is_floating_point() else value
