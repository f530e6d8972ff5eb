"""How much the loss minds a change of each weight: the diagonal of the Gauss-Newton matrix, by rows (`paring.core.gauss_newton`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.evaluating import evaluating
from paring.core.gauss_newton import products


@dataclass
class Curvature:
    """Of one weight.

    Attributes:
        rows: (rows,) the trace of each row of the weight (its first dimension); not negative.
        columns: (columns, columns) the sum over the rows of the matrix between columns, of weights of two dimensions that
            were asked for; positive semidefinite but for noise. Empty otherwise.
    """

    rows: Tensor
    columns: Tensor


def output_curvature(
    net: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    names: Sequence[str],
    *,
    tables: Sequence[str] = (),
    probes: int = 1,
    seed: int = 0,
) -> dict[str, Curvature]:
    """Estimated curvature of the loss by the weights.

    Args:
        net: a network; stays as it is.
        loss: of it on a batch.
        batches: of calibration data.
        names: of parameters.
        tables: those of them whose matrix between columns is wanted.
        probes: random directions for each batch.
        seed: of the directions.

    Returns:
        By name; nothing where the loss does not call the network, or its answers do not depend on any weight.
    """
    weights = [net.get_parameter(name) for name in names]
    before = [weight.requires_grad for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Curvature] = {}
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad(), evaluating(net):
            for batch in batches:
                for one in products(net, loss, batch, lambda: weights, generator, probes):
                    for name, weight, first, second in zip(names, weights, one.left, one.right, strict=True):
                        if first is not None and second is not None:
                            _add(found, name, weight, first, second, name in tables)
    finally:
        for weight, needed in zip(weights, before, strict=True):
            weight.requires_grad_(needed)
    for curvature in found.values():
        curvature.rows.clamp_min_(0)
    return found


def _add(found: dict[str, Curvature], name: str, weight: Tensor, first: Tensor, second: Tensor, table: bool) -> None:
    width = weight.shape[1] if table else 0
    fresh = found.setdefault(name, Curvature(weight.new_zeros(len(weight)), weight.new_zeros(width, width)))
    fresh.rows += (first * second).flatten(1).sum(1)
    if table:
        fresh.columns += first.T @ second
