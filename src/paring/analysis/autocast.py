"""Mixed precision set aside: the autocast around a call, and the one that was put around a network's forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import MethodType
from typing import Any

import torch
from torch import nn

from paring.core.unwrap import unwrapped


@contextmanager
def plainly() -> Iterator[None]:
    """No autocast meanwhile, whatever is on around this."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def unrecorded() -> Iterator[None]:
    """Contexts that switch an autocast off that is not on do nothing meanwhile: a tracer would keep each as a nested graph."""
    cls: Any = torch.autocast
    enter, leave = cls.__enter__, cls.__exit__
    idle: list[torch.autocast] = []

    def entering(self: torch.autocast) -> Any:
        if self._enabled or torch.is_autocast_enabled(self.device):
            return enter(self)
        idle.append(self)
        return self

    def leaving(self: torch.autocast, *raised: Any) -> Any:
        if not any(one is self for one in idle):
            return leave(self, *raised)
        del idle[next(place for place, one in enumerate(idle) if one is self)]
        return None

    cls.__enter__, cls.__exit__ = entering, leaving
    try:
        yield
    finally:
        cls.__enter__, cls.__exit__ = enter, leave


@contextmanager
def own_forward(net: nn.Module) -> Iterator[None]:
    """The forward of the network's class meanwhile, where mixed precision was wrapped around it on the instance."""
    held = vars(net).get("forward")
    if not is_autocast(net):
        yield
        return
    del net.forward
    try:
        yield
    finally:
        net.forward = held  # type: ignore[assignment]


def take_off(net: nn.Module) -> bool:
    """Take the mixed precision off that was wrapped around the network's forward on the instance; False without any."""
    if not is_autocast(net):
        return False
    del net.forward
    vars(net).pop("_original_forward", None)  # where accelerate keeps what it wrapped
    return True


def is_autocast(net: nn.Module) -> bool:
    """Whether `net.forward` is the instance's own: autocast around the forward of the class, as accelerate puts it there.

    What else is wrapped around it there (accelerate turns outputs into float32) may be there when it is bound to the network.
    """
    held = vars(net).get("forward")
    *outer, inner = _layers(held) if held is not None else [None]
    casts = [_file(layer).endswith("torch/amp/autocast_mode.py") for layer in outer]
    bound = isinstance(held, MethodType) and held.__self__ is net
    return inner is type(net).forward and any(casts) and (bound or all(casts))


def check_forward(net: nn.Module) -> None:
    """Refuse a forward on an instance that holds on to the network: a copy would run the original.

    Raises:
        ValueError: says whose it is and what to do.
    """
    parts = {id(part) for part in net.modules()}
    for path, module in net.named_modules():
        held = vars(module).get("forward")
        if held is None or (module is net and is_autocast(net)):
            continue
        for layer in _layers(held):
            if any(id(getattr(one, "__self__", one)) in parts for one in _closed_over(layer)):
                whose = f"layer '{path}'" if path else f"this {type(net).__name__}"
                if unwrapped(module) is not module:
                    raise ValueError(
                        f"{whose} is wrapped in a {type(module).__name__} (torch.compile makes one): put the part itself there, "
                        f"net.{path} = net.{path}._orig_mod, and compile it in the small network again"
                    )
                raise ValueError(
                    f"the forward of {whose} was replaced on the instance by a function that holds on to it, so a copy of the "
                    "network would run the original. Take it off (del module.forward), or write it into the class"
                )


def _layers(call: Any) -> Iterator[Any]:
    """A function and what it wraps, as `functools.wraps` notes it; methods as their functions."""
    while call is not None:
        if isinstance(call, MethodType):
            call = call.__func__
        yield call
        call = getattr(call, "__wrapped__", None)


def _file(layer: Any) -> str:
    return str(getattr(getattr(layer, "__code__", None), "co_filename", "")).replace("\\", "/")


def _closed_over(layer: Any) -> list[Any]:
    found = []
    for cell in getattr(layer, "__closure__", None) or ():
        with suppress(ValueError):  # a cell that holds nothing yet
            found.append(cell.cell_contents)
    return found
