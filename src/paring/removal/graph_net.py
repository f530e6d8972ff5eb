"""The graph form of a network: its captured computation with new sizes, under the same parameter names.

Where sizes are written into the user's forward, smaller parameters do not fit it. A `GraphNet` has the modules of the
network as containers of their parameters and buffers (stock layers stay stock layers), and runs the operations that
were captured in train and in eval mode, one after the other. Any batch size works, and other lengths, heights and widths where the
capture could leave them free; all other sizes of the inputs, arguments that are no tensors, and settings such as dropout
rates are those of the capture.
"""

from __future__ import annotations

import inspect
import math
import operator
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from paring.core.refusal import Refusal
from paring.core.zeros import Zeros

NAMES: dict[str, object] = {
    "torch": torch,
    "getattr": getattr,
    "math": math,
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


class OtherSizes(ValueError):
    """A network in graph form does not take inputs of these sizes; the message says which it takes."""


@dataclass(frozen=True)
class Script:
    """One captured forward.

    source: Python of `forward(self, *leaves)`. shapes: per input leaf its sizes, a name where it is free; no tensor: the
    value. guards: Python of `fits(**sizes)`, of these names: whether the computation is the network's. inputs, outputs: how
    leaves are packed, into (positional arguments, keyword arguments) and into the result.
    """

    source: str
    shapes: tuple[object, ...]
    guards: str
    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec

    def __post_init__(self) -> None:
        for source, name in ((self.source, "forward"), (self.guards, "fits")):
            if source not in _FUNCTIONS:
                space = dict(NAMES)
                exec(compile(source, "<graph form>", "exec"), space)
                _FUNCTIONS[source] = space[name]

    def __deepcopy__(self, memo: object) -> Script:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _script, (
            self.source,
            self.shapes,
            self.guards,
            *map(pytree.treespec_dumps, (self.inputs, self.outputs)),
        )


def _script(source: str, shapes: tuple[object, ...], guards: str, inputs: str, outputs: str) -> Script:
    return Script(source, shapes, guards, pytree.treespec_loads(inputs), pytree.treespec_loads(outputs))


@dataclass(frozen=True)
class Recipe:
    """How a graph form comes out of the network that it was made from.

    masks: which units stay, by the name of what they belong to. example: the arguments (see `as_nested`), with a `Shape` in
    place of every tensor. sizes: those of its sizes that were left free, beside the batch.
    """

    masks: dict[str, Tensor]
    example: object
    sizes: tuple[int, ...]


class GraphNet(nn.Module):
    """A network as captured operations on the parameters of its containers; see the module docstring.

    Shapes, arguments and results are those of the network it was made from. Raises `ValueError` for inputs of other
    sizes than captured and for a mode that could not be captured.
    """

    def __init__(
        self, net: nn.Module, scripts: dict[bool, Script | Refusal], names: tuple[str, ...], recipe: Recipe | None
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

    @property
    def takes(self) -> str:
        """The sizes of its inputs, in words: free ones by a name."""
        captured = next(script for script in self._scripts.values() if isinstance(script, Script))
        return " and ".join(shown(shape) for shape in captured.shapes if isinstance(shape, tuple))

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
        if isinstance(script, Refusal):
            raise ValueError(f"{self._kind} has no graph for {'train' if self.training else 'eval'} mode: {script}")
        leaves, spec = pytree.tree_flatten(self._arranged(script, args, kwargs))
        if spec != script.inputs:
            raise ValueError(f"{self._kind} was captured with inputs {script.inputs}, not {spec}")
        sizes: dict[str, int] = {}
        for leaf, expected in zip(leaves, script.shapes, strict=True):
            _check(leaf, expected, sizes, self._kind)
        if not _FUNCTIONS[script.guards](**sizes):
            told = ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
            raise OtherSizes(
                f"{self._kind} in graph form computes something else for inputs of {told} than what was captured; compact it with "
                "an example of these sizes"
            )
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
        given.update(kwargs)  # not |=, which torch.compile may not know
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


def _check(leaf: object, expected: object, sizes: dict[str, int], kind: str) -> None:
    """Compare an argument with what was captured; free sizes are noted by their names. The batch may broadcast."""
    if not isinstance(expected, tuple):
        if leaf != expected:
            raise ValueError(f"{kind} was captured with the argument {expected!r}, not {leaf!r}")
        return
    assert isinstance(leaf, Tensor)
    fits = len(expected) == leaf.dim()
    for dim, (size, n) in enumerate(zip(expected, leaf.shape, strict=False)):
        if isinstance(size, str):
            known = sizes.setdefault(size, n)
            fits = fits and (known == n or dim == 0)
        else:
            fits = fits and size == n
    if not fits:
        raise OtherSizes(
            f"{kind} in graph form takes {shown(expected)}, not {tuple(leaf.shape)}: sizes with a number are fixed, and those of one "
            "name are equal. Compact it with an example of the size you need."
        )


def shown(expected: tuple[object, ...]) -> str:
    """Sizes that are taken: the batch is called so, others are letters or numbers."""
    told = ["batch" if dim == 0 and isinstance(size, str) else str(size) for dim, size in enumerate(expected)]
    return f"({', '.join(told)}{',' * (len(told) == 1)})"


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
