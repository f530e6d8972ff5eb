"""The loss of a batch where the user gives none, and what a batch is otherwise asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        answer = _answer(net, batch)
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
            f"a batch here is {_told(batch)}; without loss= it has to be a pair of an input and integer labels, or a mapping that "
            "the network takes. Give loss=, a function of the network and a batch"
        )
    out, labels = net(pair[0]), pair[1].long()
    if not isinstance(out, Tensor):
        raise ValueError(
            f"this {type(net).__name__} answers {_told(out)}, and without loss= it has to be one tensor of scores: give loss=, "
            "such as lambda net, batch: F.cross_entropy(net(batch[0])[0], batch[1])"
        )
    if not labels.dim():
        raise ValueError(
            "a batch here holds one label, so it is a single example and no batch: hand over a DataLoader of the data set, "
            "DataLoader(dataset, 64, shuffle=True), or give loss="
        )
    if out.dim() == labels.dim() + 1 and out.dim() > 2 and out.shape[:-1] == labels.shape:
        return F.cross_entropy(out.flatten(0, -2).float(), labels.flatten())  # classes last, as language models answer
    classes = out.shape[1] if out.dim() > 1 else 0
    if classes < 2 or labels.shape != out.shape[:1] + out.shape[2:]:
        raise ValueError(
            f"scores of shape {tuple(out.shape)} and labels of shape {tuple(labels.shape)} do not fit cross-entropy, the loss "
            "where none is given: it takes a score for each class, and a label for each example or position. Give loss=, such as "
            "lambda net, batch: F.binary_cross_entropy_with_logits(net(batch[0]), batch[1].float())"
        )
    return F.cross_entropy(out.float(), labels)


def _answer(net: nn.Module, batch: Mapping[str, Any]) -> Any:
    """What the network says to a mapping.

    Raises:
        ValueError: it takes no such names.
    """
    try:
        return net(**batch)
    except TypeError as error:
        try:
            inspect.signature(net.forward).bind(**batch)
        except TypeError as unfit:
            raise ValueError(
                f"without loss= this {type(net).__name__} is called as net(**batch), and that does not fit: {unfit}. Give loss=, "
                "a function of the network and a batch"
            ) from error
        raise


def _told(value: Any) -> str:
    """What a batch or an answer is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list) and 0 < len(value) <= 4:
        return f"a {type(value).__name__} of {', '.join(map(_told, value))}"
    return f"a {type(value).__name__}"


@torch.no_grad()
def mean_loss(net: nn.Module, batches: Collection[Any], loss: Loss) -> float:
    """Of a network, in the mode it is in, over these batches.

    Raises:
        ValueError: the loss is no scalar.
    """
    return sum(float(scalar(loss(net, batch))) for batch in batches) / len(batches)


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
    """Refuse what can be gone through only once, or not at all.

    Raises:
        ValueError: it is an iterator.
        TypeError: it is no iterable.
    """
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        call = f"; call it: {name}={name}()" if callable(batches) else ""
        raise TypeError(
            f"{name} has to be an iterable, such as a DataLoader or a list, and is a {type(batches).__name__}{call}"
        )
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{name} is a {type(batches).__name__}, which can be gone through only once: give a list, a DataLoader, or an "
            "object whose __iter__ begins anew"
        )


def count(batches: Iterable[Any], name: str = "batches") -> int:
    """How many batches a pass has; counted by going through it where it does not say. name: for the message.

    Raises:
        ValueError: there is none.
    """
    try:
        found = len(batches)  # type: ignore[arg-type]  # what has no length says so
    except (TypeError, NotImplementedError):  # a DataLoader has a length only if its data set has one
        found = sum(1 for _ in batches)
    if not found:
        raise ValueError(f"{name} is empty: give an iterable of at least one batch, such as a DataLoader or a list")
    return found


def one_pass(batches: Iterable[Any], each: int, name: str = "batches") -> Iterator[Any]:
    """The batches of a pass, which are `each`. name: for the message.

    Raises:
        ValueError: there are fewer.
    """
    number = 0
    for batch in batches:
        if number == each:
            return
        number += 1
        yield batch
    if number < each:
        raise ran_out(name, f" after {number} of {each}")


def ran_out(name: str, when: str = "") -> ValueError:
    """What to say of batches that can be gone through only once, and were."""
    return ValueError(
        f"{name} ran out{when}: they are gone through several times. Give a list or a DataLoader and no generator, or an object "
        "whose __iter__ begins anew"
    )
