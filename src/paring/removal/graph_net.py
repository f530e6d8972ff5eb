"""The graph form of a network: its captured computation with new sizes, under the same parameter names.

Where sizes are written into the user's forward, smaller parameters do not fit it. A `GraphNet` has the modules of the
network as containers of their parameters and buffers (stock layers stay stock layers), and runs the operations that
were captured in train and in eval mode, one after the other. Any batch size works; all other sizes of the inputs,
arguments that are no tensors, and settings such as dropout rates are those of the capture.
"""

from __future__ import annotations

import inspect
import operator
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from paring.core.zeros import Zeros

NAMES: dict[str, object] = {
    "torch": torch,
    "getattr": getattr,
    "operator": operator,
    "_operator": operator,
    "device": torch.device,
    "inf": float("inf"),
    "nan": float("nan"),
    "NoneType": type(None),
    "fx_pytree": fx_pytree,
    "pytree": pytree,
}

_FUNCTIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class Script:
    """One captured forward.

    source: Python of `forward(self, *leaves)`. shapes: per input leaf its sizes, None where any will do; no tensor: the
    value. inputs, outputs: how leaves are packed, into (positional arguments, keyword arguments) and into the result.
    """

    source: str
    shapes: tuple[object, ...]
    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec

    def __post_init__(self) -> None:
        if self.source not in _FUNCTIONS:
            space = dict(NAMES)
            exec(compile(self.source, "<graph form>", "exec"), space)
            _FUNCTIONS[self.source] = space["forward"]

    def __deepcopy__(self, memo: object) -> Script:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _script, (self.source, self.shapes, *map(pytree.treespec_dumps, (self.inputs, self.outputs)))


def _script(source: str, shapes: tuple[object, ...], inputs: str, outputs: str) -> Script:
    return Script(source, shapes, pytree.treespec_loads(inputs), pytree.treespec_loads(outputs))


@dataclass(frozen=True)
class Recipe:
    """How a graph form comes out of the network that it was made from.

    masks: which units stay, by the name of what they belong to. example: the arguments (see `as_nested`), with a `Shape` in
    place of every tensor.
    """

    masks: dict[str, Tensor]
    example: object


class GraphNet(nn.Module):
    """A network as captured operations on the parameters of its containers; see the module docstring.

    Shapes, arguments and results are those of the network it was made from. Raises `ValueError` for inputs of other
    sizes than captured and for a mode that could not be captured.
    """

    def __init__(
        self, net: nn.Module, scripts: dict[bool, Script | str], names: tuple[str, ...], recipe: Recipe | None
    ) -> None:
        """net: holds the parameters. scripts: training -> captured forward, or why there is none.

        names: of positional arguments, in order.
        """
        super().__init__()
        _contain(net, self, {id(net): self})
        self._scripts, self.argument_names, self.recipe = scripts, names, recipe
        self._kind: str = net._kind if isinstance(net, GraphNet) else type(net).__name__
        self.training = net.training
        self._sign()

    def _sign(self) -> None:
        """Let `inspect.signature(self.forward)` show the arguments of the network: `torch.export` looks there."""
        kind, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        captured = next(script for script in self._scripts.values() if isinstance(script, Script))
        others = [name for name in _names(captured.inputs)[1] if name not in self.argument_names]
        shown = [
            inspect.Parameter("self", kind),
            *(inspect.Parameter(n, kind, default=None) for n in self.argument_names),
            *(inspect.Parameter(n, keyword, default=None) for n in others),
        ]
        function = types.FunctionType(GraphNet.forward.__code__, GraphNet.forward.__globals__, "forward")
        function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        self.__dict__["forward"] = types.MethodType(function, self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._sign()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        script = self._scripts[self.training]
        if isinstance(script, str):
            raise ValueError(f"{self._kind} has no graph for {'train' if self.training else 'eval'} mode: {script}")
        leaves, spec = pytree.tree_flatten(self._arranged(script, args, kwargs))
        if spec != script.inputs:
            raise ValueError(f"{self._kind} was captured with inputs {script.inputs}, not {spec}")
        for leaf, expected in zip(leaves, script.shapes, strict=True):
            _check(leaf, expected, self._kind)
        results = _FUNCTIONS[script.source](self, *leaves)
        return pytree.tree_unflatten(list(results), script.outputs)

    def _arranged(self, script: Script, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments as they were given when it was captured, whichever of them come by name now."""
        count, names = _names(script.inputs)
        positional = self.argument_names
        if len(args) > len(positional):
            raise TypeError(f"{self._kind} takes {len(positional)} positional arguments, not {len(args)}")
        given = dict(zip(positional, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{self._kind} got {', '.join(sorted(twice))} twice, by place and by name")
        given.update(kwargs)  # not |=, which torch.compile of torch 2.6 does not know
        expected = (*positional[:count], *names)
        if unknown := [name for name in given if name not in expected]:
            raise TypeError(f"{self._kind} was captured without {', '.join(unknown)}; pass what the example had")
        if missing := [name for name in expected if name not in given]:
            raise TypeError(f"{self._kind} was captured with {', '.join(missing)}; pass what the example had")
        return tuple(given[name] for name in positional[:count]), {name: given[name] for name in names}

    def extra_repr(self) -> str:
        return f"graph form of {self._kind}"


def _names(spec: pytree.TreeSpec) -> tuple[int, list[str]]:
    """How many positional arguments a call has, and the names of its keyword arguments in order."""
    args, kwargs = pytree.tree_unflatten(range(spec.num_leaves), spec)
    return len(args), list(kwargs)


def _check(leaf: object, expected: object, kind: str) -> None:
    if not isinstance(expected, tuple):
        if leaf != expected:
            raise ValueError(f"{kind} was captured with the argument {expected!r}, not {leaf!r}")
        return
    assert isinstance(leaf, Tensor)
    fits = len(expected) == leaf.dim()
    if not fits or any(size is not None and size != n for size, n in zip(expected, leaf.shape, strict=True)):
        shown = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"{kind} in graph form takes ({shown}), not {tuple(leaf.shape)}: only the batch may have another size. "
            "Compact it with an example of the size you need."
        )


class Parts(nn.Module):
    """Parameters, buffers and children of a module that is not called."""


def _contain(source: nn.Module, target: nn.Module, made: dict[int, nn.Module]) -> None:
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is None:
            target._modules[name] = None
            continue
        if id(child) not in made:
            whole = type(child).__module__.startswith("torch.nn.modules") or isinstance(child, Zeros)
            stock = whole and not child._modules
            lists = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
            made[id(child)] = child if stock else type(child)() if type(child) in lists else Parts()
            if not stock:
                _contain(child, made[id(child)], made)
            made[id(child)].training = child.training
        target._modules[name] = made[id(child)]
