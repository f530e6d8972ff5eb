"""A loss that needs no labels: how far a network is from what the original answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.core import plain_net
from paring.core.default_loss import Loss

Call = Callable[[nn.Module, Any], Any]


def call_with(net: nn.Module, batch: Any) -> Any:
    """The answer to a batch: a mapping by keywords, without labels; of a tuple or a list the first entry; else all of it."""
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        return net(**{name: value for name, value in batch.items() if name != "labels"})
    return net(batch[0] if isinstance(batch, tuple | list) else batch)


def own_outputs(net: nn.Module, call: Call = call_with) -> Loss:
    """The squared distance to the outputs of this very network, over their mean square.

        loss(student, batch) = sum |student(x) - net(x)|^2 / sum |net(x)|^2,    the mean over the tensors of the answer

    For outputs of length 1 it is twice one minus their cosine. The network itself has the loss 0.

    Args:
        net: the original, of which a copy is kept.
        call: (network, batch) -> answer. By default mappings are given by keywords, without "labels"; of a tuple or a list the first
            entry is given; all else as it is.

    Returns:
        The loss, for `pr.compress`, `pr.prune` and loops of one's own.

    Raises:
        ValueError: when it is called, and the network answers no tensor of floats.
    """
    original = copy.deepcopy(plain_net(net, "own_outputs")).eval().requires_grad_(False)

    def loss(student: nn.Module, batch: Any) -> Tensor:
        answer = call(student, batch)
        with torch.no_grad():
            taught = _floats(call(original, batch))
        said = _floats(answer)
        if not said:
            raise ValueError(
                f"own_outputs compares tensors of floats, and this {type(student).__name__} answers a {type(answer).__name__}"
            )
        parts = [(a - b).square().sum() / b.square().sum().clamp_min(1e-30) for a, b in zip(said, taught, strict=True)]
        return torch.stack(parts).mean()

    return loss


def _floats(answer: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(dict(answer) if isinstance(answer, Mapping) else answer)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
