"""Data to learn from, and how to descend: what learning compressors train with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core import Progress, Watch
from paring.core.default_loss import again_and_again, count


@dataclass(frozen=True)
class Training:
    """A loss on batches of training data, and Adam's settings.

    Args:
        loss: (network, batch) -> scalar.
        batches: number of an epoch -> its batches, in its order.
        steps: batches in an epoch.
        lr: learning rate at which a pretrained network is trained on.
        watch: called after every step with the steps that are done and all steps of this part of the work.
    """

    loss: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Iterable[Any]]
    steps: int
    lr: float = 1e-3
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"Training(steps={self.steps}, lr={self.lr}): both must be positive")

    @classmethod
    def over(
        cls,
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
        lr: float = 1e-3,
        watch: Watch | None = None,
    ) -> Training:
        """The same batches every epoch, in the order in which they come.

        Args:
            loss: (network, batch) -> scalar.
            batches: a DataLoader, a list; its `iter` begins anew.
            lr: learning rate.
            watch: see `Training`.

        Raises:
            ValueError: there are no batches, or they can be gone through only once.
        """
        again_and_again("batches", batches)
        return cls(loss, lambda epoch: batches, count(batches), lr, watch)

    @classmethod
    def of(
        cls,
        loss: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        batch: int = 100,
        lr: float = 1e-3,
        seed: int = 0,
        teacher: Tensor | None = None,
        share: float = 0.5,
        temperature: float = 2.0,
        watch: Watch | None = None,
    ) -> Training:
        """Minibatches of examples in a new order every epoch; one example that is left over goes with the batch before it.

        Args:
            loss: such as `torch.nn.functional.cross_entropy`.
            x: (examples, ...).
            y: (examples, ...).
            batch: examples in a step.
            lr: learning rate.
            seed: of the orders.
            teacher: (examples, classes) outputs to follow as well, of the network that is compressed, say (distillation:
                Hinton, Vinyals, Dean 2015): (1 - a) loss + a T^2 KL(softmax(teacher / T) || softmax(outputs / T)).
            share: a.
            temperature: T.
            watch: see `Training`.
        """
        if len(x) != len(y) or not len(x):
            raise ValueError(f"Training.of: {len(x)} inputs and {len(y)} answers; there must be as many, at least one")
        if teacher is not None and (len(teacher) != len(x) or not 0 <= share <= 1 or not temperature > 0):
            raise ValueError(
                f"Training.of: a teacher of {len(teacher)} rows for {len(x)} examples, share {share}, temperature {temperature}"
            )

        alone = len(x) > batch > 1 and len(x) % batch == 1  # no BatchNorm can train on that

        def batches(epoch: int) -> Iterable[Any]:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            parts = list(torch.randperm(len(x), generator=generator).to(x.device).split(batch))
            if alone:
                parts[-2:] = [torch.cat(parts[-2:])]
            for rows in parts:
                yield x[rows], y[rows], None if teacher is None else teacher[rows]

        def of_batch(net: nn.Module, given: Any) -> Tensor:
            inputs, answers, followed = given
            out = net(inputs)
            plain = loss(out, answers)
            if followed is None:
                return plain
            soft, own = (followed / temperature).softmax(-1), (out / temperature).log_softmax(-1)
            return (1 - share) * plain + share * temperature**2 * F.kl_div(own, soft, reduction="batchmean")

        return cls(of_batch, batches, math.ceil(len(x) / batch) - alone, lr, watch)


class Descent:
    """One training over a number of epochs: Adam, the learning rate falling along a cosine or constant.

    Args:
        training: data and loss.
        parameters: what is trained.
        epochs: length of the schedule; may be a fraction.
        lr: first learning rate, the training's by default.
        final: last learning rate as a part of the first.
        first: number of the first epoch, so that several trainings in turn see other orders.
    """

    def __init__(
        self,
        training: Training,
        parameters: Sequence[Tensor] | Sequence[dict[str, Any]],
        epochs: float,
        *,
        lr: float | None = None,
        final: float = 0.0,
        first: int = 0,
    ) -> None:
        self.training, self.final = training, final
        self.steps = max(1, round(epochs * training.steps))
        self.optimizer = torch.optim.Adam(parameters, lr=training.lr if lr is None else lr, fused=True)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.step, self._epoch = 0, first
        self._batches = iter(training.batches(first))

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self.step >= self.steps

    def run(
        self,
        net: nn.Module,
        epochs: float | None = None,
        *,
        penalty: Callable[[], Tensor | None] = lambda: None,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        loss: Callable[[Any], Tensor] | None = None,
    ) -> None:
        """Descend for a part of the schedule, in train mode; the network is in eval mode afterwards.

        Args:
            net: the network.
            epochs: of this part; the rest of the schedule by default.
            penalty: added to the loss.
            before: called when the gradients are there.
            after: called after the optimizer's step.
            loss: of a batch, in place of the training's loss of the network.
        """
        last = (
            self.steps if epochs is None else min(self.steps, self.step + max(1, round(epochs * self.training.steps)))
        )
        net.train()
        while self.step < last:
            share = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (self.final + (1 - self.final) * share)
            batch = self._next()
            self.optimizer.zero_grad()
            value = self.training.loss(net, batch) if loss is None else loss(batch)
            extra = penalty()
            (value if extra is None else value + extra).backward()
            before()
            self.optimizer.step()
            after()
            self.step += 1
            if self.training.watch is not None:
                self.training.watch(Progress(self.step, self.steps))
        net.eval()

    def _next(self) -> Any:
        found = next(self._batches, None)
        if found is None:
            self._epoch += 1
            self._batches = iter(self.training.batches(self._epoch))
            found = next(self._batches)
        return found
