"""Other libraries that remove units, used as their documents say. They come with the extra `bench`.

Torch-Pruning removes the units that it is told (those whose weights are all zero), with all that its dependency graph
couples to them; after a head is cut, its users correct the number of heads themselves, and so do we.

torch-simplify finds what is dead by itself. It imports torchvision, for three class names that it only compares with;
where torchvision is not installed (there is none for some builds of torch), classes without content stand in for them
while it is imported. None of the networks here is one of the three, so its answers are the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import paring
from evidence.benches.bench_nets import Attention
from evidence.benches.dead import Group, rows
from paring.removal import compact

Dead = Sequence[tuple[Group, Tensor]]
Remove = Callable[[nn.Module, Tensor, Dead], nn.Module]
_STAND_INS = {"torchvision": (), "torchvision.models": ("MobileNetV3", "ShuffleNetV2")}
_STAND_INS |= {"torchvision.models.densenet": ("_DenseLayer",)}


class Missing(ImportError):
    """A library of the extra `bench` is not installed."""


def module(name: str, package: str) -> Any:
    """The module of a library of the extra `bench`."""
    if importlib.util.find_spec(name) is None:
        raise Missing(f"{package} is not installed: pip install 'paring[bench]'")
    return importlib.import_module(name)


def ours(net: nn.Module, x: Tensor, dead: Dead) -> nn.Module:
    """`pr.compact`, which finds what is dead by itself and verifies what it does."""
    return compact(net, x)[0]


def unverified(net: nn.Module, x: Tensor, dead: Dead) -> nn.Module:
    """`pr.compact` without the check."""
    return compact(net, x, verify=False)[0]


def ours_fused(net: nn.Module, x: Tensor, dead: Dead) -> nn.Module:
    """The same with BatchNorm fused into the layers, which ends training: what torch-simplify does to convolutions."""
    return compact(net, x, fuse_norms=True)[0]


def torch_pruning(net: nn.Module, x: Tensor, dead: Dead) -> nn.Module:
    """Torch-Pruning: build the dependency graph, prune the dead units group by group."""
    tp = module("torch_pruning", "Torch-Pruning")
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=x)
    for group, units in dead:
        layer = net.get_submodule(group.writers[0][0])
        prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        found = graph.get_pruning_group(layer, prune, idxs=rows(units, group.block).tolist())
        if not graph.check_pruning_group(found):
            raise RuntimeError(f"Torch-Pruning refuses the group of {group.writers[0][0]}")
        found.prune()
        if group.asks:
            attention = net.get_submodule(group.writers[0][0].rpartition(".")[0])
            assert isinstance(attention, Attention)
            attention.heads -= len(units)
    return net


def torch_simplify(net: nn.Module, x: Tensor, dead: Dead) -> nn.Module:
    """torch-simplify: its one function, on an example of batch 1."""
    with _torchvision():
        library = module("simplify", "torch-simplify")
    found: nn.Module = library.simplify(net, x[:1])
    return found


@contextmanager
def _torchvision() -> Iterator[None]:
    """Stand-ins for the names that torch-simplify imports, where torchvision is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    for name, classes in _STAND_INS.items():
        module: Any = types.ModuleType(name)
        for one in classes:
            setattr(module, one, type(one, (), {}))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in _STAND_INS:
            del sys.modules[name]


FUSED = "paring, norms fused"
TOOLS: dict[str, Remove] = {
    "paring": ours,
    "Torch-Pruning": torch_pruning,
    "torch-simplify": torch_simplify,
    FUSED: ours_fused,
}
_PACKAGES = {"Torch-Pruning": "torch-pruning", "torch-simplify": "torch-simplify"}


def tool_version(tool: str) -> str:
    """Version of an installed tool."""
    return version(_PACKAGES[tool]) if tool in _PACKAGES else paring.__version__


@contextmanager
def lenient() -> Iterator[None]:
    """The others' warnings are not ours."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield
