"""Captures that tests share: a network of the same structure gives the same graph, and tracing it takes a tenth of a second.

Networks of tests are small and few: most captures of a run trace one that was traced before. `Shared` stands in for the
part of `paring.analysis.capture` that calls `torch.export`, wherever a capture is not itself what is tested
(`tests/conftest.py` says where), and in the processes of `tests/forked.py`. `tests/test_captures.py` has what must hold
for that: what is shared is what a fresh capture gives, and whatever a forward can depend on keeps two networks apart.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from paring.core import Inputs
from paring.core.attachment import STATE_KEY  # of what was attached to a network; no forward reads it

Export = Callable[[nn.Module, Inputs, bool, Sequence[int]], ExportedProgram]

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_OF_FORWARD = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")  # not of state dicts
_PLAIN = (int, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.memory_format)


class UnlikeAny(Exception):
    """The network holds what cannot be compared; it is captured for itself."""


class Shared:
    """`torch.export` of networks, each structure once.

    Args:
        export: what captures a network that is not known yet.
        most: so many are remembered, the latest used.
    """

    def __init__(self, export: Export, most: int = 300) -> None:
        self._export, self._most = export, most
        self._known: OrderedDict[Hashable, ExportedProgram] = OrderedDict()

    def __call__(self, net: nn.Module, inputs: Inputs, dynamic: bool, sizes: Sequence[int] = ()) -> ExportedProgram:
        """The program of this network, or of one of the same structure."""
        try:
            key = dynamic, tuple(sizes), structure(net, inputs)
        except UnlikeAny:
            return self._export(net, inputs, dynamic, sizes)
        if key not in self._known:
            self._known[key] = self._export(net, inputs, dynamic, sizes)
        self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return self._known[key]


def share() -> None:
    """Share captures in this process from now on."""
    module: Any = sys.modules["paring.analysis.capture"]
    module._export = Shared(module._export)


def structure(net: nn.Module, inputs: Inputs) -> Hashable:
    """All that the graph of a network depends on: classes, attributes, modes, and shapes, but no entry of a tensor.

    Raises:
        UnlikeAny: a module has hooks or a forward of its own, or an attribute that is neither plain nor frozen.
    """
    seen: dict[int, int] = {}
    modules = tuple((path, _module(module, seen)) for path, module in net.named_modules(remove_duplicate=False))
    named = (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    tensors = tuple((name, _tensor(tensor), seen.setdefault(id(tensor), len(seen))) for name, tensor in named)
    leaves, tree = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    example = tuple(_tensor(leaf) if isinstance(leaf, Tensor) else _plain(leaf) for leaf in leaves)
    around = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    return modules, tensors, example, str(tree), around


def _module(module: nn.Module, seen: dict[int, int]) -> Hashable:
    own = vars(module)
    if "forward" in own or any(own[name] for name in own if name.endswith(_OF_FORWARD)):
        raise UnlikeAny
    rest = tuple(
        (name, _plain(value)) for name, value in own.items() if name not in _OF_EVERY_MODULE and name != STATE_KEY
    )
    number = seen.setdefault(id(module), len(seen))
    return type(module), type(module).forward, number, frozenset(module._non_persistent_buffers_set), rest


def _tensor(tensor: Tensor) -> Hashable:
    return type(tensor), tuple(tensor.shape), tensor.dtype, tensor.stride(), tensor.device, tensor.requires_grad


def _plain(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return type(value), tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return dict, tuple((_plain(key), _plain(one)) for key, one in value.items())
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_plain(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, partial):
        return partial, value.func, _plain(value.args), _plain(value.keywords)
    if isinstance(value, float):
        return float, repr(value)  # -0.0 is not 0.0
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, types.BuiltinFunctionType) or (
        isinstance(value, types.FunctionType) and value.__closure__ is None
    ):
        return value
    raise UnlikeAny
