"""Networks that are trained by several processes: wrappers made anew after a cut, and one decision for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from paring.run.distributed.wrappers import note_renewed

T = TypeVar("T")


class Parallel:
    """A wrapper around a network, such as DistributedDataParallel, that is made anew when it has to be.

    That is whenever the network shrinks or other parameters are trained. Call it like the wrapper; its attributes
    and methods (`no_sync`, ...) are those of the present wrapper.

    Attributes:
        wrapped: the present wrapper.
    """

    wrapped: nn.Module

    def __init__(self, net: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self._net, self._wrap = net, wrap
        self.renew()

    def renew(self) -> None:
        """Make the wrapper anew."""
        self.__dict__.pop("wrapped", None)
        self._moving = self._trained()
        self.wrapped = self._wrap(self._net)
        note_renewed(self.wrapped)

    def _trained(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._net.parameters()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._trained() != self._moving:  # a loaded state in which gates have ended: do not wait for their gradients
            self.renew()
        return self.wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "wrapped" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    here = torch.distributed
    return not (here.is_available() and here.is_initialized()) or here.get_rank() == 0


def from_first(decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; without several processes, simply the decision.

    Raises:
        RuntimeError: rank 0 could not decide.
    """
    here = torch.distributed
    if not (here.is_available() and here.is_initialized() and here.get_world_size() > 1):
        return decide()
    box: list[Any] = [None, None]
    problem: Exception | None = None
    if here.get_rank() == 0:
        try:
            box[0] = decide()
        except Exception as error:  # whatever it is, the other ranks must not wait for ever
            problem, box[1] = error, f"{type(error).__name__}: {error}"
    here.broadcast_object_list(box, src=0)
    if problem is not None:
        raise problem
    if box[1] is not None:
        raise RuntimeError(f"rank 0 could not decide for all processes: {box[1]}")
    decision: T = box[0]
    return decision
