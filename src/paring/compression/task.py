"""What a compressor works on: a network, a bound on its loss, data to learn from, and a door for candidates.

A candidate counts only as what its file holds: it is written, read back, and measured as decoded. The smallest file
within the bound wins.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from paring.compression.objective import Objective
from paring.compression.tensors import halved, is_binary, on_grid
from paring.compression.through_file import through_file
from paring.compression.training import Training
from paring.core import Progress, Watch

Settings = dict[str, float | int | str]


@dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
        number: in order of appearance, from 0.
        settings: what the compressor tried, by name.
        bytes: length of the file.
        loss: of the network decoded from the file.
        error: of the same network, when `compress` was given an error.
        within: whether the bound holds.
        best: whether it is the smallest within the bound so far.
        seconds: since `compress` began.
    """

    number: int
    settings: Settings
    bytes: int
    loss: float
    error: float | None
    within: bool
    best: bool
    seconds: float


@dataclass(frozen=True)
class Bound:
    """What a candidate has to keep.

    Attributes:
        objective: the loss.
        loss: its largest value.
        error: a second measure, such as the share of wrong answers; None for none.
        largest_error: its largest value.
    """

    objective: Objective
    loss: float
    error: Objective | None = None
    largest_error: float = math.inf

    def measure(self, net: nn.Module) -> tuple[float, float | None, bool]:
        """Loss and error of a network, and whether both are within the bound."""
        loss = self.objective(net)
        error = self.error(net) if self.error is not None and math.isfinite(loss) else None
        within = math.isfinite(loss) and loss <= self.loss and (error is None or error <= self.largest_error)
        return loss, error, within


@dataclass
class Task:
    """What one call of `compress` works on.

    Attributes:
        net: the network to compress, in eval mode; compressors work on copies.
        bound: what a candidate has to keep.
        watch: called with every candidate (`Progress.step`) and its decoded network (`Progress.net`).
        training: what compressors calibrate and train on.
        example: one example input, for compressors that capture the network.
        small_bits: bits of biases and norms; 0 keeps them in half precision where the bound allows.
        steps: all candidates so far.
        best: the smallest decoded network within the bound, with its step; None before there is one.
    """

    net: nn.Module
    bound: Bound
    training: Training
    example: Any = None
    small_bits: int = 0
    watch: Watch | None = None
    steps: list[Step] = field(default_factory=list)
    best: tuple[nn.Module, Step] | None = None
    began: float = field(default_factory=time.perf_counter)

    def offer(self, net: nn.Module, **settings: float | int | str) -> Step:
        """Judge a candidate, its small tensors in half precision (or on their grid) when that is within the bound."""
        narrow = on_grid(halved(net), self.small_bits) if self.small_bits else halved(net)
        step = self._judge(narrow, settings)
        if not step.within and self.bound.measure(net)[2]:
            step = self._judge(net, settings)
        return step

    def offer_as_is(self, net: nn.Module, **settings: float | int | str) -> Step:
        """Judge a candidate, changing nothing about it."""
        return self._judge(net, settings)

    @contextmanager
    def on(self, net: nn.Module) -> Iterator[None]:
        """For a while, the network to compress is another one; bound and candidates stay."""
        before, self.net = self.net, net
        try:
            yield
        finally:
            self.net = before

    def _judge(self, net: nn.Module, settings: Settings) -> Step:
        decoded, size = through_file(net)
        loss, error, within = self.bound.measure(decoded)
        best = within and (self.best is None or size < self.best[1].bytes)
        seconds = time.perf_counter() - self.began
        step = Step(len(self.steps), dict(settings), size, loss, error, within, best, seconds)
        self.steps.append(step)
        if best:
            self.best = decoded, step
        if self.watch is not None:
            self.watch(Progress(len(self.steps), None, str(step.settings), step, decoded))
        return step


class Compressor(ABC):
    """A way to make networks small. Subclasses are frozen dataclasses of numbers; they hold no tensors."""

    @property
    def trains(self) -> bool:
        """Whether it needs data to learn from."""
        return False

    @property
    def name(self) -> str:
        """For tables and messages."""
        return type(self).__name__

    @abstractmethod
    def run(self, task: Task) -> None:
        """Offer candidates to the task, as many as make sense; smaller ones while the bound holds."""


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
        net: the network, decoded from its file; the given one when no candidate was within the bound and no larger than it.
        loss: of that network on the objective.
        base_loss: of the given network.
        error: of that network, when an error was given.
        base_error: of the given network, when an error was given.
        bytes: length of the file.
        base_bytes: parameters and buffers of the given network as they are in memory, tied ones once.
        steps: all candidates.
        chosen: the step that won; None for the network as it was given.
        interrupted: whether Ctrl-C ended the search early.
        reason: why it is the network as it was given; empty when it is not.
    """

    net: nn.Module
    loss: float
    base_loss: float
    error: float | None
    base_error: float | None
    bytes: int
    base_bytes: int
    steps: tuple[Step, ...]
    chosen: Step | None
    interrupted: bool = False
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Bytes in memory before over bytes of the file."""
        return self.base_bytes / self.bytes

    def __str__(self) -> str:
        lines = [
            f"{self.base_bytes:,} bytes in memory → {self.bytes:,} in a file ({self.ratio:.1f} times fewer)",
            f"loss {self.base_loss:.6g} → {self.loss:.6g}",
        ]
        if self.error is not None and self.base_error is not None:
            lines.append(f"error {self.base_error:.6g} → {self.error:.6g}")
        if self.chosen is not None:
            settings = ", ".join(f"{name} {value}" for name, value in self.chosen.settings.items())
            lines.append(
                f"candidate {self.chosen.number + 1} of {len(self.steps)}" + (f": {settings}" if settings else "")
            )
        notes = [self.reason] if self.reason else []
        notes += ["interrupted: the best so far"] if self.interrupted else []
        return "\n".join([*lines, *(f"! {note}" for note in notes), "paring.pack(found.net, path) writes it"])


def working_copy(net: nn.Module) -> nn.Module:
    """A copy to change, in eval mode; all parameters can be trained but binary weights, which stay as they are."""
    twin = copy.deepcopy(net).eval()
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(not (parameter.dim() >= 2 and is_binary(parameter)))
    return twin
