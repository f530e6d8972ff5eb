"""What is pruned, on which data, and how well it does: from a file of the user's, or from a run of `paring train`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from paring.core import Example
from paring.core.default_loss import Loss, cross_entropy
from paring.pruning.calls import example_of
from paring.pruning.prune import Metric, called_with
from paring.pruning.tune import Optimize


class JobError(RuntimeError):
    """A job file cannot be used, or something in it failed; the message says at which line."""


@dataclass(frozen=True)
class Job:
    """All that `paring.prune` is called with, besides numbers.

    Attributes:
        name: of the file or the run, as messages and pages show it.
        source: SHA-256 of what it was read from.
        net: the trained network.
        batches: training data.
        loss: of the network on a batch; None is cross-entropy, or what the network answers.
        metric: of the network.
        validate: held-out batches.
        example: what the network takes.
        optimizer: from the parameters that train to an optimizer.
        said: what a reader should know of it.
        model: a name in `paring.models.MODELS`, or the network's class.
        data: a name in `paring.data.NAMES`, or `name`.
        shape, classes: of that data set's examples; None for a file.
        validation: examples that the run set aside.
    """

    name: str
    source: str
    net: nn.Module
    batches: Iterable[Any]
    loss: Loss | None = None
    metric: Metric | None = None
    validate: Iterable[Any] | None = None
    example: Example | None = None
    optimizer: Optimize | None = None
    said: tuple[str, ...] = ()
    model: str = ""
    data: str = ""
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    validation: int = 0

    def with_example(self) -> Job:
        """The same with an example, taken from the loss's first call of the network where there is none."""
        if self.example is not None:
            return self
        first = next(iter(self.batches), None)
        if first is None:
            raise JobError(f"{self.name}: batches() is empty; it has to return at least one batch")
        return replace(self, example=example_of(self.net, called_with(self.net, [first], self.loss or cross_entropy)))


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and Python: what a job draws is the same every time."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what users' data loading draws from
    random.seed(seed)
