"""The loss of a batch where the user gives none, and what a batch is otherwise asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

Loss = Callable[[nn.Module, Any], Tensor]
"""`loss(net, batch)`: a scalar, the mean over the examples of the batch."""


def cross_entropy(net: nn.Module, batch: Any) -> Tensor:
    """The loss where none is given: the network's own for a mapping, cross-entropy for a pair of input and labels.

    Raises:
        ValueError: the batch is neither, or the network answers no loss.
    """
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        answer = net(**batch)
        found = answer.get("loss") if hasattr(answer, "get") else getattr(answer, "loss", None)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"this {type(net).__name__} answers no loss for a batch with {', '.join(map(str, batch))}: put labels into the "
                "batch, or give loss=, a function of the network and a batch"
            )
        return found
    pair = batch if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not isinstance(pair[1], Tensor) or pair[1].is_floating_point():
        raise ValueError(
            f"a batch here is a {type(batch).__name__}; without loss= it has to be a pair of an input and integer labels, or a "
            "mapping that the network takes. Give loss=, a function of the network and a batch"
        )
    out = net(pair[0])
    if out.dim() == pair[1].dim() + 1 and out.dim() > 2 and out.shape[:-1] == pair[1].shape:
        return F.cross_entropy(out.flatten(0, -2).float(), pair[1].flatten())  # classes last, as language models answer
    return F.cross_entropy(out.float(), pair[1])


def scalar(value: object) -> Tensor:
    """The loss, checked.

    Raises:
        ValueError: it is no scalar tensor.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        shaped = isinstance(value, Tensor)
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        advice = "take its mean" if shaped else "return the tensor itself, without .item()"
        raise ValueError(f"loss(net, batch) has to return a scalar tensor, and returned {got}; {advice}")
    return value.reshape(())


def examples(batch: Any) -> int:
    """How many examples a batch has: the first size of its first tensor; 1 where there is none."""
    leaves = pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return next((len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()), 1)


def again_and_again(name: str, batches: Iterable[Any]) -> None:
    """Refuse what can be gone through only once.

    Raises:
        ValueError: it is an iterator.
    """
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{name} is a {type(batches).__name__}, which can be gone through only once: give a list, a DataLoader, or an "
            "object whose __iter__ begins anew"
        )
