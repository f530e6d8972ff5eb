"""The original network as the teacher (Hinton, Vinyals, Dean 2015).

    loss = (1 - w) · task + w · T² · KL(softmax(teacher / T) ‖ softmax(student / T)),  w = weight · (1 + cos(π · done)) / 2

done: share of the training that is over. The teacher helps to get back to what it knows; by the end only the task counts, so that a
network whose original was not trained to the end, or on other data, may become better than it.
Where the answers are no logits of classes, the squared distance over the teacher's variance takes the KL's place. It pulls at the
answers no harder than the task does: where its gradient by them is larger, it is scaled down to the length of the task's. Else
answers of a small spread (heat maps, probabilities) would make steps larger by one over their variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core import validate
from paring.pruning.calls import Calls, floats


@dataclass(frozen=True)
class Teacher:
    """How much the original network teaches.

    Args:
        weight: share of the teacher's term in the loss, in [0, 1]; with `fades`, at the first step.
        temperature: softens both distributions.
        logits: whether the answers are logits of classes; None: if the loss is cross-entropy. Classes lie along the axis that the
            labels lack: the second for images of labels, else the last.
        fades: whether the weight falls to zero, as a cosine; else it stays.

    Raises:
        ValueError: a number is out of its range.
    """

    weight: float = 0.5
    temperature: float = 2.0
    logits: bool | None = None
    fades: bool = True

    def __post_init__(self) -> None:
        validate.within(self, "[0, 1]", "weight", what="a share of the loss,")
        validate.positive(self, "temperature")

    def share(self, done: float) -> float:
        """Share of the teacher's term when so much of the training is over, from 0 to 1."""
        return self.weight * (0.5 * (1 + math.cos(math.pi * done)) if self.fades else 1.0)

    def of(self, net: nn.Module, logits: bool, axis: int = -1) -> Teaching:
        """The term that this network, in eval mode, teaches. axis: of the classes."""
        compared = logits if self.logits is None else self.logits
        return Teaching(net.eval(), self, axis if compared else None)


def class_axis(answer: Any, batch: Any) -> int:
    """Where the classes lie in what a network answers for this batch: on the axis that the labels lack, by default the last.

    Args:
        answer: of the network.
        batch: a pair whose last entry is the labels, or a mapping with "labels".
    """
    labels = (
        batch.get("labels") if isinstance(batch, Mapping) else batch[-1] if isinstance(batch, tuple | list) else None
    )
    said = floats(answer)
    if not said or not isinstance(labels, Tensor) or labels.dim() != said[0].dim() - 1:
        return -1
    return -1 if said[0].shape[:-1] == labels.shape else 1


@dataclass
class Teaching:
    """The teacher's term; the student's calls are noted while `listening`."""

    net: nn.Module
    how: Teacher
    axis: int | None
    _calls: Calls = field(default_factory=Calls)

    @contextmanager
    def listening(self, net: nn.Module) -> Iterator[None]:
        """While this is on, the calls of the student `net` are noted."""
        with self._calls.of(net):
            yield

    def mix(self, loss: Tensor, done: float) -> Tensor:
        """The loss with the teacher's term on the student's last call. done: share of the training that is over.

        Raises:
            ValueError: the student was not called, or answers no floats.
        """
        inputs, said = self._calls.inputs, floats(self._calls.answer)
        self._calls.clear()
        if inputs is None or not said:
            raise ValueError(
                "the teacher compares what the network answers, but loss(net, batch) did not call it, or it answers no tensor "
                "of floats: give teacher=None"
            )
        with torch.no_grad():
            taught = floats(self.net(*inputs.args, **inputs.kwargs))
        if [one.shape for one in said[: len(taught)]] != [one.shape for one in taught]:
            shapes = ", ".join(str([tuple(one.shape) for one in both]) for both in (said, taught))
            raise ValueError(
                f"the teacher answers in eval mode, and tensors of other shapes than the network while it trains ({shapes}): give "
                "teacher=None"
            )
        said = said[: len(taught)]  # an auxiliary head answers in train mode alone
        term = torch.stack([self._term(a.float(), b.float()) for a, b in zip(said, taught, strict=True)]).mean()
        pulled = [one for one in said if one.requires_grad]
        if pulled and loss.requires_grad and any(self._by_classes(one) is None for one in said):
            task, own = _pull(loss, pulled), _pull(term, pulled)
            term = term * torch.where((task > 0) & (own > task), task / own.clamp(min=1e-30), 1.0)
        share = self.how.share(done)
        return (1 - share) * loss + share * term

    def _by_classes(self, said: Tensor) -> int | None:
        """The axis of the classes; None for what is compared by its distance. A single number has no distribution."""
        return None if self.axis is None or said.shape[self.axis] == 1 else self.axis

    def _term(self, said: Tensor, taught: Tensor) -> Tensor:
        axis = self._by_classes(said)
        if axis is None:
            return F.mse_loss(said, taught) / (taught.var().clamp(min=1e-12) if taught.numel() > 1 else 1.0)
        t = self.how.temperature
        said, taught = ((one / t).log_softmax(axis) for one in (said, taught))
        return F.kl_div(said, taught, reduction="none", log_target=True).sum(axis).mean() * t * t


def _pull(term: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """Length of the gradient of a term by the answers."""
    found = torch.autograd.grad(term, answers, retain_graph=True, allow_unused=True)
    length: Tensor = torch.stack([torch.zeros(()) if one is None else one.float().norm().cpu() for one in found]).norm()
    return length
