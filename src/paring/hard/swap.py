"""Activations of a user's network: which modules they are, which calls are not modules, and how to put others in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from paring.analysis.capture import capture
from paring.analysis.state import module_path, packet
from paring.core import Example
from paring.hard.learned_step import LearnedStep
from paring.hard.units import SaturatedReLU, Sign, Staircase

UNITS: tuple[type[nn.Module], ...] = (Sign, Staircase, SaturatedReLU, LearnedStep)
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh,
)  # fmt: skip
_CALLS = frozenset(
    (
        "relu",
        "relu6",
        "leaky_relu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardtanh",
    )
)  # aten packets of the above


def activations(net: nn.Module, names: str = "") -> dict[str, nn.Module]:
    """Activation modules by name, in the order of the network; a module of several names under each.

    Args:
        net: any network.
        names: module names or patterns over them, joined by `|`; empty for every module whose type is an activation.

    Raises:
        ValueError: nothing is found, or a name is the network itself.
    """
    wanted = [part for part in names.split("|") if part]
    found = {
        name: module
        for name, module in net.named_modules(remove_duplicate=False)
        if (any(fnmatchcase(name, part) for part in wanted) if wanted else type(module) in ACTIVATIONS)
    }
    if odd := [p for p in wanted if not any(fnmatchcase(n, p) for n, _ in net.named_modules(remove_duplicate=False))]:
        raise ValueError(
            f"no module is called {odd[0]!r} in this {type(net).__name__}; its modules are listed by print(net)"
        )
    for name, module in found.items():
        if wanted and any(p.dim() > 1 for p in module.parameters()):
            raise ValueError(
                f"{name!r} is a {type(module).__name__} with weights, no activation; name the activations alone"
            )
    found = {name: module for name, module in found.items() if not any(name.startswith(f"{up}.") for up in found if up)}
    if "" in found:
        raise ValueError(f"this {type(net).__name__} is an activation itself; put it into nn.Sequential(...) first")
    if not found:
        what = f"module is called {names!r}" if wanted else "module is an activation such as nn.ReLU"
        raise ValueError(
            f"no {what} in this {type(net).__name__}; activations are swapped where they are modules of their own "
            "(self.act = nn.ReLU() in __init__, self.act(x) in forward)"
        )
    return found


def functional(net: nn.Module, example: Example) -> dict[str, str]:
    """Calls of activations that are no activation modules: place in the network → operation.

    Raises:
        paring.CaptureError: the network cannot be captured.
    """
    modules = dict(net.named_modules(remove_duplicate=False))
    found: dict[str, str] = {}
    for node in capture(net, example).nodes:
        name = packet(node.target).rstrip("_")
        path = module_path(node)
        if node.op == "call_function" and name in _CALLS and type(modules.get(path)) not in (*ACTIVATIONS, *UNITS):
            found.setdefault(path, name)
    return found


def swap(net: nn.Module, found: Mapping[str, nn.Module], make: Callable[[nn.Module], nn.Module]) -> None:
    """Put `make(old)` in the place of each of these modules, in place; one new module for one old one."""
    fresh: dict[int, nn.Module] = {}
    for name, old in found.items():
        if id(old) not in fresh:
            fresh[id(old)] = make(old).train(old.training)
        path, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(path), leaf, fresh[id(old)])
