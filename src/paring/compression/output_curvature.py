"""How much the loss minds a change of each weight: the Gauss-Newton matrix, through the outputs of the network.

    H = J^T C J,    J = d outputs / d weights,    C = the second derivative of the loss by the outputs

For random signs v, J^T v and J^T C v have entries whose product is, in the mean, the diagonal of H. Where the loss has no curvature
in the outputs (it is linear in them, or the network answers it itself), C is 1: the squared distance of the outputs. Labels
matter only through C, so a network is not taken for indifferent where its gradient is zero, as that of a distance to
its own outputs is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.core.evaluating import evaluating


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
                for left, right in _directions(net, loss, batch, weights, probes, generator):
                    for name, weight, first, second in zip(names, weights, left, right, strict=True):
                        if first is not None and second is not None:
                            _add(found, name, weight, first, second, name in tables)
    finally:
        for weight, needed in zip(weights, before, strict=True):
            weight.requires_grad_(needed)
    for one in found.values():
        one.rows.clamp_min_(0)
    return found


Gradients = tuple[Tensor | None, ...]


def _directions(
    net: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    weights: list[nn.Parameter],
    probes: int,
    generator: torch.Generator,
) -> Iterable[tuple[Gradients, Gradients]]:
    """J^T v and J^T C v for random signs v."""
    given: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, answer: Any) -> Any:
        parts, form = pytree.tree_flatten(answer)
        for number, part in enumerate(parts):
            if isinstance(part, Tensor) and part.is_floating_point() and part.requires_grad:
                given.append(part)
                leaves.append(part.detach().requires_grad_())
                parts[number] = leaves[-1]
        return pytree.tree_unflatten(parts, form)

    handle = net.register_forward_hook(cut)
    try:
        value = loss(net, batch)
    finally:
        handle.remove()
    if not leaves:
        return
    slopes = _slopes(value, leaves)
    wide = [number for number, leaf in enumerate(leaves) if leaf.dim()] or list(range(len(leaves)))
    for _ in range(probes):
        signs = [_signs(leaf, generator) for leaf in leaves]
        bent = None if slopes is None else _bent(slopes, leaves, signs)
        if bent is None:  # squared distance
            one = _pulled([given[n] for n in wide], [signs[n] for n in wide], weights)
            yield one, one
        else:
            yield _pulled(given, signs, weights), _pulled(given, bent, weights)


def _signs(leaf: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, leaf.shape, generator=generator)
    return (2 * drawn - 1).to(leaf.device, leaf.dtype)


def _slopes(value: Tensor, leaves: list[Tensor]) -> list[Tensor | None] | None:
    """The gradient of the loss by the outputs, with a graph; None where it has none."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return None
    return list(torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True))


def _bent(slopes: list[Tensor | None], leaves: list[Tensor], signs: list[Tensor]) -> list[Tensor] | None:
    """C v; None where it is zero throughout."""
    parts = [
        (slope * sign).sum()
        for slope, sign in zip(slopes, signs, strict=True)
        if slope is not None and slope.requires_grad
    ]
    if not parts:
        return None
    bent = torch.autograd.grad(torch.stack(parts).sum(), leaves, retain_graph=True, allow_unused=True)
    found = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, bent, strict=True)]
    return found if any(bool(one.any()) for one in found) else None


def _pulled(given: list[Tensor], signs: list[Tensor], weights: list[nn.Parameter]) -> Gradients:
    return torch.autograd.grad(given, weights, signs, retain_graph=True, allow_unused=True)


def _add(found: dict[str, Curvature], name: str, weight: Tensor, first: Tensor, second: Tensor, table: bool) -> None:
    width = weight.shape[1] if table else 0
    fresh = found.setdefault(name, Curvature(weight.new_zeros(len(weight)), weight.new_zeros(width, width)))
    fresh.rows += (first * second).flatten(1).sum(1)
    if table:
        fresh.columns += first.T @ second
