"""Scores: how much each weight matters; higher stays. Plain functions of a network, named as in their papers.

    magnitude   |w|
    snip        |w dL/dw|                          connection sensitivity (Lee, Ajanthan, Torr 2019)
    grasp       w (H g)                            (Wang, Zhang, Grosse 2020) they remove the highest of -w (H g)
    synflow     |w dR/d|w||, R = sum of outputs of the network with |w| on an input of ones (Tanaka et al. 2020)
    random      independent uniform numbers

A loss is a function that runs the network on a batch and returns a scalar, so the scores work for any task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

Loss = Callable[[nn.Module], Tensor]


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w| for every weight."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Independent uniform numbers in [0, 1), drawn on the CPU so that every device gets the same."""
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in weights.items()
    }


def snip(net: nn.Module, names: Sequence[str], loss: Loss) -> dict[str, Tensor]:
    """|w dL/dw|, normalised to a sum of 1 over all weights.

    Args:
        net: the network; left as it was (running statistics included).
        names: parameters to score.
        loss: scalar loss of a network on a batch.
    """
    copy_, weights = _closed_copy(net, names)
    grads = torch.autograd.grad(loss(copy_), weights)
    found = [(w * g).detach().abs() for w, g in zip(weights, grads, strict=True)]
    _check_finite("SNIP", found)
    total = torch.stack([f.double().sum() for f in found]).sum()
    if not total > 0:
        raise ValueError("SNIP: all sensitivities are zero; is the loss connected to these weights?")
    return {name: f.double() / total for name, f in zip(names, found, strict=True)}


def grasp(net: nn.Module, names: Sequence[str], loss: Loss) -> dict[str, Tensor]:
    """W (H g), g the gradient and H the Hessian of the loss with respect to the scored weights.

    Removing a weight changes the gradient norm to first order by -2 w (H g): weights whose removal lowers
    it most (the most negative -w (H g)) are kept.

    Args:
        net: the network; left as it was.
        names: parameters to score.
        loss: scalar loss; the paper divides logits by a temperature of 200 and balances the classes.
    """
    copy_, weights = _closed_copy(net, names)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        grads = torch.autograd.grad(loss(copy_), weights, create_graph=True)
        norm = torch.stack([(g * g.detach()).sum() for g in grads]).sum()
        products = torch.autograd.grad(norm, weights)
    found = [(w * hg).detach() for w, hg in zip(weights, products, strict=True)]
    _check_finite("GraSP", found)
    return dict(zip(names, found, strict=True))


def synflow(
    net: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Synaptic flow: |w| dR/d|w| in float64 and eval mode, with all parameters replaced by their magnitudes.

    Needs no data: only the shapes of the example count. BatchNorm uses its running statistics as they are.

    Args:
        net: the network; left as it was.
        names: parameters to score.
        args: positional arguments of the network; floating-point tensors are replaced by ones, one example each.
        kwargs: keyword arguments, likewise.
    """
    copy_, weights = _closed_copy(net, names)
    copy_.double().eval()
    with torch.no_grad():
        for parameter in copy_.parameters():
            parameter.abs_()

    def ones(a: Tensor) -> Tensor:
        return torch.ones_like(a[:1], dtype=torch.float64) if a.is_floating_point() else a

    given, named = tree_map_only(Tensor, ones, (args, dict(kwargs or {})))
    grads = torch.autograd.grad(copy_(*given, **named).sum(), weights)
    found = [(w * g).detach().abs() for w, g in zip(weights, grads, strict=True)]
    _check_finite("SynFlow", found)
    return dict(zip(names, found, strict=True))


def _closed_copy(net: nn.Module, names: Sequence[str]) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the network and the weights in it that are scored, frozen ones too."""
    copy_ = copy.deepcopy(net)
    return copy_, [copy_.get_parameter(name).requires_grad_() for name in names]


def _check_finite(what: str, scores: Sequence[Tensor]) -> None:
    if not all(bool(score.isfinite().all()) for score in scores):
        raise ValueError(
            f"{what}: scores are not finite; check the weights, the example and the loss for nan and too large numbers"
        )
