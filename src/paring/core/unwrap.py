"""The network inside the wrappers that training puts around it, found in one way by everything that takes a network.

Unwrapped are `torch.compile`, DataParallel, DistributedDataParallel, `AveragedModel`, what Lightning Fabric returns, and
any nesting of these, by their classes: a network of one's own that has a part called `module` stays as it is.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from paring.core.answers_only import AnswersOnly
from paring.core.attachment import STATE_KEY
from paring.core.fresh import let_go
from paring.core.layers import Gated
from paring.core.sharding import is_sharded

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
_PREFIXES = ("_orig_mod.", "module.")
_MOUNTED = {"unit_gate", "input_gate", "weight_gate", "weight_gates", "block_gate", STATE_KEY}
_ELSEWHERE = (  # (module, class, where the network is in it); looked up, so that nothing has to be installed or loaded
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("lightning.fabric.wrappers", "_FabricModule", "module"),
    ("lightning_fabric.wrappers", "_FabricModule", "module"),
)


def wrappers(net: nn.Module) -> Iterator[nn.Module]:
    """`net` and what it wraps, from the outermost to the network itself."""
    inner: nn.Module | None = net
    while inner is not None:
        yield inner
        inner = _inside(inner)


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside all wrappers; `net` itself when there are none."""
    *_, inner = wrappers(net)
    return inner


@contextmanager
def seen_through(net: nn.Module) -> Iterator[None]:
    """Within this context the parts of a network stand where wrappers around them do: names are those of the network alone."""
    held = _wrapped_parts(net)
    try:
        for parent, name, child in held:
            parent._modules[name] = unwrapped(child)
        yield
    finally:
        for parent, name, child in held:
            parent._modules[name] = child


def without_wrapped_parts(net: nn.Module) -> nn.Module:
    """The network itself where no part of it is wrapped, such as by `torch.compile`, else a copy with the parts themselves."""
    if not _wrapped_parts(net):
        return net
    with seen_through(net):
        return copy.deepcopy(net)


def _wrapped_parts(net: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Wrappers inside a network: what holds each, and by which name."""
    return [
        (parent, name, child)
        for parent in net.modules()
        for name, child in parent._modules.items()
        if child is not None and _inside(parent) is None and _inside(child) is not None
    ]


def unaveraged(net: nn.Module) -> bool:
    """Whether an `AveragedModel` is among the wrappers that has not averaged anything yet."""
    return any(isinstance(part, AveragedModel) and int(part.n_averaged) == 0 for part in wrappers(net))


def plain_net(net: nn.Module, what: str, error: type[Exception] = ValueError) -> nn.Module:
    """The network inside all wrappers, for what takes it whole and without gates.

    Args:
        net: a network, or a wrapper around one.
        what: the function that takes it, for messages.
        error: the exception that this function raises.

    Raises:
        error: gates are still in, the network is sharded over processes, or was deployed.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"{what} needs an nn.Module, got {type(net).__name__}")
    if any(is_sharded(one) for one in wrappers(net)):
        raise error(
            f"{what} needs the whole network, but this {type(net).__name__} is sharded over processes. Hand over the network "
            "that run.finish() gathers, or load the full state dict into a network that is not sharded"
        )
    net = let_go(unwrapped(net))
    if isinstance(net, torch.jit.ScriptModule):
        raise error(f"{what} cannot take a network of torch.jit: hand over the nn.Module that it was made from")
    gated = [name for name, module in net.named_modules() if isinstance(module, Gated)]
    if gated:
        raise error(
            f"{what} takes a network without gates, but {gated[0]!r} of this {type(net).__name__} still has its own "
            f"({len(gated)} layers do): call run.finish() first, and hand over the network that it returns"
        )
    for name, module in net.named_modules():
        if isinstance(module, AnswersOnly):
            raise error(f"{what} cannot take {name!r}, a {type(module).__name__}: {module.instead}")
    return net


def gated_names(names: Iterable[str]) -> list[str]:
    """Those of a state dict that belong to gates, or to the method that put them in."""
    return [name for name in names if not _MOUNTED.isdisjoint(name.split("."))]


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a state dict without what wrappers put in front of all of them: name there -> name in the network."""
    left = {name: name for name in names}
    while True:
        inside = {name: rest for name, rest in left.items() if rest != "n_averaged"}
        prefix = next((p for p in _PREFIXES if inside and all(rest.startswith(p) for rest in inside.values())), "")
        if not prefix:
            return left
        left = {name: rest.removeprefix(prefix) for name, rest in inside.items()}


def _inside(net: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for anything else."""
    kind = type(net)
    inner: Any = net.module if issubclass(kind, _WRAPPERS) else None
    for package, name, leaf in _ELSEWHERE:
        wrapper = getattr(sys.modules.get(package), name, None)
        if wrapper is not None and issubclass(kind, wrapper):
            inner = getattr(net, leaf)
    return inner if isinstance(inner, nn.Module) else None
