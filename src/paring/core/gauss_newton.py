"""Products with the Gauss-Newton matrix, through the outputs of the network: how much the loss minds a change.

    H = J^T C J,    J = d outputs / d tensors,    C = the second derivative of the loss by the outputs

For random signs v, J^T v and J^T C v have entries whose product is, in the mean, the diagonal of H (Hutchinson 1990, as Bekas,
Kokiopoulou and Saad 2007 use it). Labels matter only through C, so a network is not taken for indifferent where its gradient
is zero, as that of a distance to its own outputs is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Gradients = tuple[Tensor | None, ...]
"""For each tensor; None where the outputs do not depend on it."""


@dataclass(frozen=True)
class Products:
    """For one direction v.

    Attributes:
        left: J^T v.
        right: J^T C v.
        bent: whether the loss has a curvature in the outputs. If not (it is linear in them, the network answers it itself, or
            PyTorch knows no second derivative of it), C is 1: the squared distance of the outputs.
        steepness: n Σ s² / tr C, with the slopes s of the loss by the n outputs. About one or more for a likelihood that was learned
            from more than the network can know by heart; zero where the network answers what it is taught.
    """

    left: Gradients
    right: Gradients
    bent: bool
    steepness: float


def products(
    net: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    tensors: Callable[[], Sequence[Tensor]],
    generator: torch.Generator,
    probes: int = 1,
) -> Iterator[Products]:
    """Products for random directions; nothing where the loss does not call the network, or it answers nothing that depends.

    Args:
        net: in the mode that is wanted.
        loss: of it on a batch.
        batch: one.
        tensors: what the products are with, asked for once the network was called.
        generator: draws the directions.
        probes: how many.
    """
    given: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, answer: Any) -> Any:
        parts, form = pytree.tree_flatten(answer)
        for number, part in enumerate(parts):
            if isinstance(part, Tensor) and part.is_floating_point() and part.requires_grad:
                given.append(part)
                leaves.append(part.detach().requires_grad_())
                parts[number] = leaves[-1].clone()  # a loss may write into it
        return pytree.tree_unflatten(parts, form)

    handle = net.register_forward_hook(cut)
    try:
        value = loss(net, batch)
    finally:
        handle.remove()
    if not leaves:
        return
    slopes, wanted = _slopes(value, leaves), tensors()
    wide = [number for number, leaf in enumerate(leaves) if leaf.dim()] or list(range(len(leaves)))
    for _ in range(probes):
        signs = [_signs(leaf, generator) for leaf in leaves]
        bent = _bent(slopes, leaves, signs)
        if bent is None:  # squared distance
            one = _pulled([given[n] for n in wide], [signs[n] for n in wide], wanted)
            yield Products(one, one, bent=False, steepness=math.inf)
        else:
            trace = _inner(signs, bent)
            steep = sum(leaf.numel() for leaf in leaves) * _inner(slopes, slopes) / trace if trace > 0 else math.inf
            yield Products(_pulled(given, signs, wanted), _pulled(given, bent, wanted), bent=True, steepness=steep)


def _inner(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return float(sum((a.detach() * b.detach()).sum() for a, b in pairs))


def _signs(leaf: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, leaf.shape, generator=generator)
    return (2 * drawn - 1).to(leaf.device, leaf.dtype)


def _slopes(value: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """The gradient of the loss by the outputs, with a graph."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return [None] * len(leaves)
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
    try:
        bent = torch.autograd.grad(torch.stack(parts).sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "is not implemented" in str(error) or "once_differentiable" in str(error):
            return None
        raise
    found = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, bent, strict=True)]
    return found if any(bool(one.any()) for one in found) else None


def _pulled(given: list[Tensor], signs: list[Tensor], tensors: Sequence[Tensor]) -> Gradients:
    return torch.autograd.grad(given, tensors, signs, retain_graph=True, allow_unused=True) if tensors else ()
