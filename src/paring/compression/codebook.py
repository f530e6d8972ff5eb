"""Codebooks: all weights of a layer (or of the network) take one of a few values, chosen so that the loss stays.

Three steps in turn (Carreira-Perpinan and Idelbayev 2017; Choi et al. 2017; Han et al. 2016):

* assign: z_i = argmin_k  h_i (c_k - w_i)^2 - beta log2 p_k        rate-aware for beta > 0, plain k-means for beta = 0
* refit:  c_k = sum_{z_i = k} h_i w_i / sum_{z_i = k} h_i           a pinned zero stays zero; empty codewords go
* learn:  descend  L(w) + mu/2 |w - c_z - lambda/mu|^2 for a while; lambda <- lambda - mu (w - c_z); mu grows

h_i are curvatures (1 for all without them), p_k the shares of the codewords. This file holds the first two, on plain
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codebook:
    """Values and who takes which.

    Attributes:
        values: (k,) float64, ascending.
        index: int64, the shape of the weights; which value each weight takes.
    """

    values: Tensor
    index: Tensor

    @property
    def weights(self) -> Tensor:
        """The weights that the codebook stands for, float64."""
        return self.values[self.index]

    @property
    def bits(self) -> float:
        """Entropy of the indices, in bits, plus 32 for every value."""
        share = torch.bincount(self.index.flatten(), minlength=len(self.values)).double()
        share = share[share > 0] / max(1, self.index.numel())
        return float(-self.index.numel() * (share * share.log2()).sum()) + 32.0 * len(self.values)


def start(weights: Tensor, size: int, *, zero: bool = False) -> Tensor:
    """First values: quantiles of the weights (with a pinned zero: zero and quantiles of the others).

    Args:
        weights: any shape.
        size: number of values, at least 1.
        zero: whether one of them is exactly zero.
    """
    if size < 1:
        raise ValueError(f"a codebook of {size} values: there has to be at least one")
    flat = weights.detach().double().flatten()
    if not zero:
        return _quantiles(flat, size)
    rest = flat[flat != 0]
    others = _quantiles(rest, size - 1) if size > 1 and len(rest) else flat.new_zeros(0)
    return torch.cat([flat.new_zeros(1), others[others != 0]]).sort().values


def linear(weights: Tensor, size: int) -> Tensor:
    """First values evenly between the smallest and the largest weight, as Deep Compression begins.

    Args:
        weights: any shape, at least one entry.
        size: number of values, at least 1.
    """
    if size < 1:
        raise ValueError(f"a codebook of {size} values: there has to be at least one")
    flat = weights.detach().double().flatten()
    found: Tensor = (
        torch.linspace(float(flat.min()), float(flat.max()), size, dtype=torch.float64).unique().to(flat.device)
    )
    return found


def fit(
    weights: Tensor,
    values: Tensor,
    *,
    curvature: Tensor | None = None,
    rate: float = 0.0,
    zero: bool = False,
    sweeps: int = 50,
) -> Codebook:
    """Assign and refit until nothing changes.

    The objective sum_i h_i (w_i - c_z)^2 - rate sum_i log2 p_z never grows from one sweep to the next.

    Args:
        weights: any shape.
        values: (k,) first values.
        curvature: h, of the weights' shape and positive; 1 by default.
        rate: price of a bit.
        zero: keep the value zero where it is.
        sweeps: at most so many.

    Raises:
        ValueError: the curvature has another shape, or is negative somewhere.
    """
    flat = weights.detach().double().flatten()
    h = torch.ones_like(flat) if curvature is None else curvature.detach().double().flatten()
    if h.shape != flat.shape or bool((h < 0).any()):
        raise ValueError("the curvature must have the shape of the weights and must not be negative")
    values = values.double().sort().values
    share = torch.full_like(values, 1.0 / len(values))
    index = torch.full(flat.shape, -1, device=flat.device)
    for _ in range(max(1, sweeps)):
        fresh = assign(flat, values, h, -rate * share.log2())
        done, index = torch.equal(fresh, index), fresh
        values, index, share = _refit(flat, h, values, index, zero)
        if done:
            break
    return Codebook(values, index.view(weights.shape))


def assign(flat: Tensor, values: Tensor, curvature: Tensor, price: Tensor) -> Tensor:
    """argmin_k h_i (c_k - w_i)^2 + price_k, in pieces so that memory stays small."""
    if len(values) == 1:
        return torch.zeros(flat.shape, dtype=torch.int64, device=flat.device)
    if not bool((price != price[0]).any()):
        return torch.bucketize(flat, (values[1:] + values[:-1]) / 2)
    step = max(1, (1 << 22) // len(values))
    pieces = [
        (h[:, None] * (w[:, None] - values).square() + price).argmin(1)
        for w, h in zip(flat.split(step), curvature.split(step), strict=True)
    ]
    return torch.cat(pieces)


def _refit(flat: Tensor, h: Tensor, values: Tensor, index: Tensor, zero: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted means, without codewords that nobody takes: values, indices, shares."""
    size = len(values)
    count = torch.bincount(index, minlength=size)
    mass = torch.zeros_like(values).index_add_(0, index, h)
    moment = torch.zeros_like(values).index_add_(0, index, h * flat)
    fresh = torch.where(mass > 0, moment / mass.clamp_min(1e-300), values)
    if zero:
        fresh = torch.where(values == 0, values, fresh)
    used = count > 0
    place = used.cumsum(0) - 1
    return fresh[used], place[index], count[used].double() / len(flat)


def _quantiles(flat: Tensor, size: int) -> Tensor:
    ordered = flat.sort().values
    spots = ((torch.arange(size, device=flat.device, dtype=torch.float64) + 0.5) / size * len(ordered)).long()
    found: Tensor = ordered[spots].unique()
    return found
