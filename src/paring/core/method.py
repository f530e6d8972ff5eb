"""Methods: frozen values of numbers and plain functions that say what a network may lose. They hold no tensors.

All hooks do nothing by default, so `Method()` is ordinary dense training. Whatever a method must remember lives in
the gates (per weight or unit) or in `attached(net).state` (per network: a Lagrange multiplier, say).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paring.core.clock import Clock


class Probe(Protocol):
    """What a method may ask about the network while it attaches: an example input and the captured wiring."""

    @property
    def example(self) -> tuple[Any, ...]: ...

    @property
    def wiring(self) -> Any: ...


@dataclass
class Attachment:
    """What paring remembers about one network, carried by the network itself through deepcopy and pickle.

    Attributes:
        method: the method that was attached.
        notes: what each method computed while attaching (cost models, sites, ...), by the method itself.
        state: tensors that change while training (multipliers), by name; part of `Run.state_dict`.
    """

    method: Method
    notes: dict[Method, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


_KEY = "_paring_attachment"


def attached(net: nn.Module) -> Attachment:
    """The network's attachment.

    Raises:
        ValueError: nothing is attached to this network.
    """
    found = net.__dict__.get(_KEY)
    if not isinstance(found, Attachment):
        raise ValueError(
            f"no method is attached to this {type(net).__name__}; call paring.attach(net, method, example) first"
        )
    return found


def is_attached(net: nn.Module) -> bool:
    """Whether a method is attached to this very module."""
    return isinstance(net.__dict__.get(_KEY), Attachment)


def set_attachment(net: nn.Module, attachment: Attachment | None) -> None:
    """Put (or with None, take away) the network's attachment. It is no submodule: `nn.Sequential` stays callable."""
    if attachment is None:
        net.__dict__.pop(_KEY, None)
    else:
        net.__dict__[_KEY] = attachment


@dataclass(frozen=True)
class Removal:
    """How units that can never open again are cut out while training goes on.

    Attributes:
        multiple_of: widths that stay at or above it are rounded up to a multiple of it, with units that are dead.
        saving: smallest predicted saving worth a cut, as a fraction of the present parameters or MACs.
        measure: time forward and backward before and after on copies, and cut only when that got faster.
    """

    multiple_of: int
    saving: float
    measure: bool


@dataclass(frozen=True)
class Method:
    """Dense training; the base of every method. Subclasses are frozen dataclasses that override hooks."""

    def attach(self, net: nn.Module, probe: Probe) -> None:
        """Put gates in. Called once, before training."""

    def start(self, net: nn.Module, clock: Clock) -> None:
        """A round begins (`clock.step == 0`)."""

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        """Scalar to add to the loss, or None."""
        return None

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        """Gradients are there, the optimizer step is not yet done."""

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        """The optimizer step is done; `clock.step` counts it."""

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
        object.__setattr__(self, "methods", tuple(methods))

    def attach(self, net: nn.Module, probe: Probe) -> None:
        for method in self.methods:
            method.attach(net, probe)

    def start(self, net: nn.Module, clock: Clock) -> None:
        for method in self.methods:
            method.start(net, clock)

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        parts = [p for method in self.methods if (p := method.penalty(net, clock)) is not None]
        return torch.stack(parts).sum() if parts else None

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        for method in self.methods:
            method.on_grads(net, clock)

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        for method in self.methods:
            method.on_step(net, opt, clock)

    def removal(self, net: nn.Module, clock: Clock) -> Removal | None:
        return next((r for method in self.methods if (r := method.removal(net, clock)) is not None), None)

    def on_shrink(self, net: nn.Module, cut: Callable[[str, Tensor], Tensor]) -> None:
        for method in self.methods:
            method.on_shrink(net, cut)

    def finish(self, net: nn.Module) -> None:
        for method in self.methods:
            method.finish(net)
