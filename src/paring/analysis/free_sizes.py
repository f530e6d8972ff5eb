"""Sizes of inputs that a network takes at other values, too: lengths of sequences, heights and widths of images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from paring.core import Inputs


def arguments(net: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What each argument of the network's forward is given, `*args` and `**kwargs` as one each.

    Raises:
        TypeError: the inputs are no call of it.
    """
    return inspect.signature(net.forward).bind(*inputs.args, **inputs.kwargs).arguments


@torch.no_grad()
def free_sizes(net: nn.Module, inputs: Inputs) -> dict[int, Inputs]:
    """Sizes behind the first dimension with which the network can also be called halved or doubled, and such a call.

    Equal sizes are one: a mask is as long as the text. On a GPU nothing is doubled: a place beyond a table ends the process there.
    """
    found: dict[int, Inputs] = {}
    safe = all(tensor.device.type == "cpu" for tensor in inputs.tensors)
    for size in sorted({size for shape in inputs.shapes for size in shape[1:] if size > 1}):
        for change in (_halved, _doubled) if safe else (_halved,):
            other = inputs.map(partial(change, size))
            try:
                other.call(net)
            except Exception:  # a network raises what it likes at a size that it does not take
                continue
            found[size] = other
            break
    return found


def _halved(size: int, tensor: Tensor) -> Tensor:
    for dim in _along(size, tensor):
        tensor = tensor.narrow(dim, 0, size // 2)
    return tensor.contiguous()


def _doubled(size: int, tensor: Tensor) -> Tensor:
    for dim in _along(size, tensor):
        tensor = torch.cat([tensor, tensor], dim)
    return tensor


def _along(size: int, tensor: Tensor) -> list[int]:
    return [dim for dim in range(1, tensor.dim()) if tensor.shape[dim] == size]


def dynamic_shapes(
    net: nn.Module, inputs: Inputs, sizes: Sequence[int] = (), first: Any = Dim.DYNAMIC
) -> dict[str, Any]:
    """The first dimension and these sizes, as `torch.export` wants it: by the name of the argument.

    first: what it is told of the first dimension. The others are free where the network allows it.
    """

    def one(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return None
        free = {dim: Dim.AUTO for size in sizes for dim in _along(size, leaf)}
        return {0: first, **free}

    found: dict[str, Any] = pytree.tree_map(one, arguments(net, inputs))
    return found


def named_shapes(net: nn.Module, inputs: Inputs, dims: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """These dimensions of these arguments, as `torch.export` wants it.

    Raises:
        ValueError: there is no such argument, it is no single tensor, or has no such dimension.
    """
    given = arguments(net, inputs)
    for name, wanted in dims.items():
        if name not in given:
            raise ValueError(f"dynamic: there is no input {name!r}; there are {', '.join(given)}")
        value = given[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"dynamic: the input {name!r} is no single tensor but a {type(value).__name__}")
        if isinstance(wanted, int | str) or not all(isinstance(dim, int) for dim in wanted):
            raise ValueError(f"dynamic: {name!r} has to name dimensions in a list, such as [0, 1], and has {wanted!r}")
        if wrong := [dim for dim in wanted if not 0 <= dim < value.dim()]:
            raise ValueError(f"dynamic: the input {name!r} of shape {tuple(value.shape)} has no dimension {wrong[0]}")

    def shape(name: str, value: object) -> object:
        if name in dims:
            return dict.fromkeys(dims[name], Dim.DYNAMIC)
        return pytree.tree_map(lambda leaf: {} if isinstance(leaf, Tensor) else None, value)

    return {name: shape(name, value) for name, value in given.items()}
