"""Methods: frozen values of numbers and plain functions that say what a network may lose. They hold no tensors.

All hooks do nothing by default, so `Method()` is ordinary dense training. Whatever a method must remember lives in
the gates (per weight or unit) or in `attached(net).state.tensors` (per network: a Lagrange multiplier, say).

What was asked of a method and cannot be done, or not as asked, is said from within any hook by
`attached(net).say(message)`: a `ParingWarning` at once, and a line in `run.report` in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from paring.core.clock import Clock
from paring.core.inputs import Inputs

T = TypeVar("T")

GOALS = {
    "small": "a smaller and faster network: whole units and inputs go",
    "sparse": "few weights: sparse networks and small files",
    "tickets": "lottery tickets: what could have been trained alone",
    "masks": "weights that never move: only which of them are there is learned",
    "bits": "hard thresholds and ±1 weights",
    "baseline": "to compare with, or to train on",
}
"""What methods are for, in the order in which the command line lists them."""


class Probe(Protocol):
    """What a method may ask about the network while it attaches: an example input and the captured wiring."""

    @property
    def example(self) -> Inputs: ...

    @property
    def wiring(self) -> Any: ...

    def loss(self, net: Callable[..., Any]) -> Tensor:
        """Scalar loss of a network (or any function of its arguments) on a batch of training data.

        Raises:
            ValueError: `attach` was not told of any.
        """
        ...

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first of several processes decides, in all of them; for what may depend on data that they do not share."""
        ...


@dataclass(frozen=True)
class Removal:
    """How units that can never open again are cut out while training goes on.

    Attributes:
        multiple_of: widths that stay at or above it are rounded up to a multiple of it, with units that are dead.
        saving: smallest predicted saving worth a cut, as a fraction of the present parameters or MACs.
        measure: time forward and backward before and after on copies, and cut only when that got faster.
        fold: first multiply gates that no longer move into the weights.
    """

    multiple_of: int
    saving: float
    measure: bool
    fold: bool = False


@dataclass(frozen=True)
class Rewind:
    """How a round after the first one begins.

    Attributes:
        weights: everything but the gates goes back to where it was at the rewind point.
        step: optimizer step at which the round begins; the learning-rate schedule goes back to it as well.
        flat: the learning rate stays at its last value instead (fine-tuning).
    """

    weights: bool = False
    step: int = 0
    flat: bool = False


@dataclass(frozen=True)
class Method:
    """Dense training; the base of every method. Subclasses are frozen dataclasses that override hooks.

    Attributes:
        goal: what the method is for, one of `GOALS`; None for what only goes with another method.
    """

    goal: ClassVar[str | None] = "baseline"

    @property
    def rounds(self) -> int:
        """Training runs that follow one another in this method."""
        return 1

    @property
    def tickets(self) -> range:
        """Rounds that leave a mask worth training in isolation."""
        return range(self.rounds - 1, self.rounds)

    def decided(self, round: int) -> int:
        """The round at whose end the mask of this round's ticket is known: the one before, which it is trained after."""
        return max(0, round - 1)

    @property
    def trains_ticket(self) -> bool:
        """Whether the mask is known before training starts, so that the training is the one in isolation."""
        return False

    def point(self, clock: Clock) -> int | None:
        """Optimizer steps of the first round after which the weights are kept to rewind to; None keeps none."""
        return None

    def goes_back(self, net: nn.Module, clock: Clock) -> bool:
        """Whether everything but the gates goes back to the rewind point right now, after `on_step`, once in a round."""
        return False

    def on_round(self, net: nn.Module, clock: Clock) -> None:
        """A round that is not the last one is over (`clock.round` is still its number): decide what stays."""

    def begin(self, clock: Clock) -> Rewind:
        """How the round `clock.round`, which is not the first one, begins."""
        return Rewind()

    def attach(self, net: nn.Module, probe: Probe) -> None:
        """Put gates in. Called once, before training."""

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        """A round begins (`clock.step == 0`)."""

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        """Scalar to add to the loss, or None."""
        return None

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        """Gradients are there, the optimizer step is not yet done."""

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        """The optimizer step is done; `clock.step` counts it."""

    @property
    def reads_weights(self) -> bool:
        """Whether `penalty` or `on_step` look at more than gates; a sharded network is gathered for them then."""
        return type(self) is not Method

    @property
    def needs_training(self) -> bool:
        """Whether what goes is decided while training; `Run.finish` then says when the loop did not follow."""
        return type(self) is not Method

    @property
    def has_penalty(self) -> bool:
        """Whether training without `penalty` in the loss is another method."""
        return False

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        """What a training that ended at this time leaves undone, as half a sentence for `Run.finish`; None for nothing."""
        return None

    @property
    def targets(self) -> Mapping[str, float]:
        """Asked sizes of the finished network, as fractions of the dense one, by name of the cost: "parameters", "macs"."""
        return {}

    def least(self, net: nn.Module) -> Mapping[str, float]:
        """The smallest size that the gates of this network could leave, like `targets`; empty where that is not known."""
        return {}

    @property
    def needs_whole(self) -> bool:
        """Whether it reads gradients of single weights, or changes the optimizer's state of them: not on a sharded network."""
        return False

    def removal(self, net: nn.Module, clock: Clock) -> Removal | None:
        """How to cut settled units out of the network right now, after `on_step`; None, the default, for not at all."""
        return None

    def on_shrink(self, net: nn.Module, cut: Callable[[str, Tensor], Tensor]) -> None:
        """The network was cut, gates included: cut what the method itself remembers of it.

        Args:
            net: the network, smaller already.
            cut: `cut(name, tensor)` cuts any tensor that had the shape of the network's parameter or buffer `name`.
        """

    def finish(self, net: nn.Module) -> None:
        """Training is over: make the last decisions. Gates are multiplied into the weights right after."""


@dataclass(frozen=True, init=False)
class Stack(Method):
    """Several methods at once; every hook runs in the given order, penalties add up."""

    methods: tuple[Method, ...]

    def __init__(self, *methods: Method) -> None:
        if not methods:
            raise ValueError("Stack() needs at least one method; use Method() for dense training")
        for method in methods:
            if not isinstance(method, Method):
                raise TypeError(f"Stack takes methods, got {type(method).__name__}: {method!r}")
        if sum(method.rounds > 1 for method in methods) > 1:
            raise ValueError("Stack takes at most one method of several rounds: who would say where the rounds begin?")
        object.__setattr__(self, "methods", tuple(methods))

    @property
    def rounds(self) -> int:
        return max(method.rounds for method in self.methods)

    @property
    def tickets(self) -> range:
        return self._leader.tickets

    def decided(self, round: int) -> int:
        return self._leader.decided(round)

    @property
    def trains_ticket(self) -> bool:
        closing = [method for method in self.methods if hasattr(method, "at")]
        return bool(closing) and all(method.trains_ticket for method in closing)

    @property
    def _leader(self) -> Method:
        """The one that has rounds; of several, `Stack` refuses to be made."""
        return next((method for method in self.methods if method.rounds > 1), self.methods[0])

    def point(self, clock: Clock) -> int | None:
        found = {step for method in self.methods if (step := method.point(clock)) is not None}
        if len(found) > 1:
            raise ValueError(f"{self!r}: the methods ask for different rewind points, steps {sorted(found)}")
        return next(iter(found), None)

    def goes_back(self, net: nn.Module, clock: Clock) -> bool:
        return any(method.goes_back(net, clock) for method in self.methods)

    def on_round(self, net: nn.Module, clock: Clock) -> None:
        for method in self.methods:
            method.on_round(net, clock)

    def begin(self, clock: Clock) -> Rewind:
        return self._leader.begin(clock)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        for method in self.methods:
            method.attach(net, probe)

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        for method in self.methods:
            method.on_start(net, clock)

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        parts = [p for method in self.methods if (p := method.penalty(net, clock)) is not None]
        return torch.stack(parts).sum() if parts else None

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        for method in self.methods:
            method.on_grads(net, clock)

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        for method in self.methods:
            method.on_step(net, opt, clock)

    @property
    def reads_weights(self) -> bool:
        return any(method.reads_weights for method in self.methods)

    @property
    def needs_training(self) -> bool:
        return any(method.needs_training for method in self.methods)

    @property
    def has_penalty(self) -> bool:
        return any(method.has_penalty for method in self.methods)

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        found = [said for method in self.methods if (said := method.unfinished(net, clock)) is not None]
        return "; ".join(found) or None

    @property
    def targets(self) -> Mapping[str, float]:
        return _smallest(method.targets for method in self.methods)

    def least(self, net: nn.Module) -> Mapping[str, float]:
        return _smallest(method.least(net) for method in self.methods)

    @property
    def needs_whole(self) -> bool:
        return any(method.needs_whole for method in self.methods)

    def removal(self, net: nn.Module, clock: Clock) -> Removal | None:
        return next((r for method in self.methods if (r := method.removal(net, clock)) is not None), None)

    def on_shrink(self, net: nn.Module, cut: Callable[[str, Tensor], Tensor]) -> None:
        for method in self.methods:
            method.on_shrink(net, cut)

    def finish(self, net: nn.Module) -> None:
        for method in self.methods:
            method.finish(net)


def _smallest(given: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The smallest of the sizes that several methods name."""
    found: dict[str, float] = {}
    for sizes in given:
        found |= {name: min(size, found.get(name, size)) for name, size in sizes.items()}
    return found
