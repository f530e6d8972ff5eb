"""A network cut into layers at its hard units, by hooks during one forward pass.

At a cut the module's output goes on as a leaf of autograd: what is above sees values, and asks for a gradient with
respect to them; what is below ends at the module's input z. Cuts come in the order of execution, so every reader of a
cut's output is recorded after it, whatever the network's branches are, and a module called twice is two cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import unwrapped
from paring.hard.units import Sign, Staircase

HARD: tuple[type[nn.Module], ...] = (Sign, Staircase)
TargetMap = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input, output, G) → what stands for ∂loss/∂input, where G = ∂loss/∂output."""


@dataclass
class Cut:
    """One call of a module at which the network is cut.

    Args:
        name: of the module.
        module: itself.
        z: its input, with its history.
        h: its output, a leaf.
    """

    name: str
    module: nn.Module
    z: Tensor
    h: Tensor


def places(net: nn.Module, maps: Mapping[str, TargetMap]) -> dict[str, nn.Module]:
    """Modules to cut at, by name: hard units, and those that have a target mapping (units inside of them belong to them).

    Raises:
        ValueError: there are none, a name is no module, or the network is wrapped in what hooks do not pass through.
    """
    if unwrapped(net) is not net:
        raise ValueError(
            f"target propagation goes layer by layer, which {type(net).__name__} does not know; give the network inside "
            "of it, or train with the gradient rules of its units, which is the same under the default weighting"
        )
    modules = dict(net.named_modules())
    unknown = sorted(set(maps) - set(modules))
    if unknown:
        raise ValueError(f"target mappings for {', '.join(unknown)}: this {type(net).__name__} has no such modules")
    inside = tuple(f"{name}." for name in maps)
    found = {
        name: module
        for name, module in modules.items()
        if name in maps or (isinstance(module, HARD) and not name.startswith(inside))
    }
    if not any(isinstance(module, HARD) for module in found.values()):
        raise ValueError(
            f"this {type(net).__name__} has no Sign or Staircase modules to set targets for; put them in, for example by "
            "paring.methods.Binarize, and keep them modules of their own"
        )
    return found


@contextmanager
def cutting(net: nn.Module, at: Mapping[str, nn.Module]) -> Iterator[list[Cut]]:
    """Record the cuts of one forward pass; modules without a gradient are refused.

    Raises:
        ValueError: while the network runs: a module that is no cut has an output without gradient, of an input with one.
    """
    cuts: list[Cut] = []

    def cut(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
            z = _only(name, args, output)
            cuts.append(Cut(name, module, z, output.detach().requires_grad_()))
            return cuts[-1].h.clone()

        return hook

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            asked = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
            if asked and isinstance(output, Tensor) and not output.requires_grad:
                raise ValueError(no_gradient(f"{name!r} ({type(module).__name__})"))

        return hook

    inside = tuple(f"{name}." for name in at)
    with _hooked(net, at, cut) as handles:
        for name, module in net.named_modules():
            if name not in at and not name.startswith(inside) and not any(module.children()):
                handles.append(module.register_forward_hook(watch(name)))
        yield cuts


@contextmanager
def clamped(net: nn.Module, at: Mapping[str, nn.Module], held: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Run the network with the given outputs in the place of the cuts', in the order of execution; record their inputs.

    Raises:
        ValueError: while the network runs: it calls its units in another order than when the outputs were recorded.
    """
    inputs: list[Tensor] = []

    def clamp(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
            z = _only(name, args, output)
            if len(inputs) == len(held) or held[len(inputs)].shape != output.shape:
                raise ValueError(
                    f"{name!r} is called out of turn: the network must run alike on every pass over a batch"
                )
            inputs.append(z)
            return held[len(inputs) - 1].clone()

        return hook

    with _hooked(net, at, clamp):
        yield inputs


@contextmanager
def _hooked(
    net: nn.Module, at: Mapping[str, nn.Module], make: Callable[[str], Callable[..., Any]]
) -> Iterator[list[Any]]:
    handles = [module.register_forward_hook(make(name)) for name, module in at.items()]
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _only(name: str, args: tuple[Any, ...], output: Any) -> Tensor:
    if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
        raise ValueError(f"{name!r} is cut out of the network: it must map one tensor to one tensor")
    if not output.is_floating_point():
        raise ValueError(f"{name!r} outputs {output.dtype}: there are no targets for what is not floating point")
    return args[0]


def no_gradient(what: str) -> str:
    """What an error says of a place where gradients end."""
    return (
        f"{what} has no gradient, so no targets come through: give TargetPropagation a mapping for it, "
        "maps={name: lambda z, h, G: ...}, that says what stands for the gradient at its input"
    )
