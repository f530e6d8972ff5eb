"""The arguments of a network as plain JSON: nested tuples, lists and dictionaries of tensors' shapes and plain values.

    {"tuple": [NODE, ...]}    {"list": [NODE, ...]}    {"dict": [[NAME, NODE], ...]}
    {"tensor": [SHAPE, DTYPE]}    {"value": true, 3, 0.5, "text" or null}

Positional arguments are a tuple; where there are keyword arguments, a list of that tuple and of a dictionary.
Nothing else can be written, and nothing else is read: no name of a class or a module, nothing to call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paring.core import Inputs
from paring.core.file_error import FileError

TYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex128,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    )
}
"""The types that a file may name."""
FREE_BYTES = 1 << 24
_DEEPEST, _SIZES = 20, 64
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Shape:
    """In place of a tensor: its sizes and type."""

    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that such a tensor takes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def as_nested(inputs: Inputs) -> object:
    """Arguments as a file holds them: the positional ones in a tuple; with keyword arguments, a list of both."""
    return [inputs.args, dict(inputs.kwargs)] if inputs.kwargs else inputs.args


def as_inputs(example: object) -> Inputs:
    """The arguments that `as_nested` put down.

    Raises:
        ValueError: they are none.
    """
    if isinstance(example, tuple):
        return Inputs(example)
    if isinstance(example, list) and [type(part) for part in example] == [tuple, dict]:
        return Inputs(*example)
    raise ValueError("its example is no tuple of arguments, nor a list of that and of keyword arguments")


def as_shapes(example: object) -> object:
    """The same nesting with shapes in place of tensors."""
    return pytree.tree_map(
        lambda leaf: Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf, example
    )


def allowed(tensor_bytes: int) -> int:
    """Bytes that an example may take beside tensors of so many bytes."""
    return max(FREE_BYTES, tensor_bytes)


def within(example: object, most: int) -> object:
    """The example with fewer inputs in its batch (two at least), so that it takes no more than `most` bytes, if that helps.

    example: nested, with shapes in place of tensors.
    """
    found = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Shape)]
    first = {shape.sizes[:1] for shape in found}
    needed = sum(shape.nbytes for shape in found)
    if needed <= most or len(first) != 1 or first == {()}:
        return example
    ((size,),) = first
    fewer = min(size, max(2, size * most // needed))
    return pytree.tree_map(
        lambda leaf: Shape((fewer, *leaf.sizes[1:]), leaf.dtype) if isinstance(leaf, Shape) else leaf, example
    )


def told(node: object, depth: int = 0) -> dict[str, Any]:
    """Nested arguments, with shapes in place of tensors, as JSON.

    Raises:
        FileError: there is something else in them, or they are nested too deep.
    """
    if depth > _DEEPEST:
        raise FileError(f"the example is nested more than {_DEEPEST} deep, which a file cannot hold; give it flat")
    if type(node) is tuple:
        return {"tuple": [told(one, depth + 1) for one in node]}
    if type(node) is list:
        return {"list": [told(one, depth + 1) for one in node]}
    if type(node) is dict and all(type(key) is str for key in node):
        return {"dict": [[key, told(one, depth + 1)] for key, one in node.items()]}
    if isinstance(node, Shape):
        return {"tensor": [list(node.sizes), str(node.dtype).removeprefix("torch.")]}
    if type(node) in _PLAIN and (type(node) is not float or math.isfinite(node)):
        return {"value": node}
    raise FileError(
        f"the example has a {type(node).__name__} among its arguments ({str(node)[:80]}), which a file cannot hold; use tensors, "
        "finite numbers, texts and None, in tuples, lists and dictionaries whose keys are texts"
    )


def understood(node: object, depth: int = 0) -> object:
    """What `told` wrote, nested as it was, with shapes in place of tensors.

    Raises:
        ValueError: it is nothing that `told` writes.
    """
    if depth > _DEEPEST or type(node) is not dict or len(node) != 1:
        raise ValueError("its example cannot be read")
    ((kind, held),) = node.items()
    if kind == "value" and type(held) in _PLAIN:
        return held
    if type(held) is list:
        if kind in ("tuple", "list"):
            inner = [understood(one, depth + 1) for one in held]
            return tuple(inner) if kind == "tuple" else inner
        if kind == "dict" and all(type(pair) is list and len(pair) == 2 and type(pair[0]) is str for pair in held):
            if len({key for key, _ in held}) < len(held):
                raise ValueError("its example has a key twice")
            return {key: understood(one, depth + 1) for key, one in held}
        if kind == "tensor" and len(held) == 2 and is_shape(held[0]) and type(held[1]) is str and held[1] in TYPES:
            return Shape(tuple(held[0]), TYPES[held[1]])
    raise ValueError("its example cannot be read")


def is_shape(given: object) -> bool:
    """Whether this is a list of sizes that a tensor may have."""
    return (
        type(given) is list
        and len(given) <= _SIZES
        and all(type(n) is int and n >= 0 for n in given)
        and math.prod(max(n, 1) for n in given) < 1 << 60
    )


def as_tensors(example: object) -> object:
    """Tensors of zeros in place of shapes."""
    return pytree.tree_map(
        lambda leaf: torch.zeros(leaf.sizes, dtype=leaf.dtype) if isinstance(leaf, Shape) else leaf, example
    )
