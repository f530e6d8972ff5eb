"""Which sizes of inputs a captured graph takes: the free ones by name, and what has to hold of them.

While a network is captured with free sizes, its own code decides by them (`if x.shape[1] > 512`), and torch notes each answer.
The graph is the network's computation just where all of these answers are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from paring.removal.rewrite import RewriteError

_FITS = "def fits({}):\n    return {}\n"


def taken(inputs: Sequence[object], program: ExportedProgram) -> tuple[tuple[object, ...], str]:
    """Per input its sizes, a number or the name of a free one (for what is no tensor its value), and `fits` of these names.

    What concerns only the batch, or sizes that depend on values, is not asked: networks are run with other batches before they
    count.

    Raises:
        RewriteError: what has to hold cannot be told from the inputs.
    """
    from torch.utils._sympy.numbers import int_oo  # these load sympy, a second that importing paring does not take
    from torch.utils._sympy.printers import PythonPrinter

    tensors = [value for value in inputs if isinstance(value, Tensor)]
    symbols: list[Any] = [size for value in tensors for size in value.shape if _free(size)]
    first: list[Any] = [value.shape[0] for value in tensors if value.dim()]
    batch = {symbol for size in first if _free(size) for symbol in size.node.expr.free_symbols}
    shapes = tuple(_sizes(value) if isinstance(value, Tensor) else value for value in inputs)
    if not symbols:
        return shapes, _FITS.format("", "True")
    names = _names(shapes)
    printed = PythonPrinter().doprint
    asked = []
    for symbol, values in program.range_constraints.items():
        if symbol not in batch and str(symbol) in names:
            most = "" if values.upper == int_oo else f" <= {values.upper}"
            asked.append(f"{values.lower} <= {symbol}{most}")
    env = symbols[0].node.shape_env
    guards = [env.replace(guard.expr) for guard in env.guards]  # symbols that were found to be others give way to these
    for expr in guards:
        if not {str(symbol) for symbol in expr.free_symbols - batch} & {*names}:
            continue
        if unknown := {str(symbol) for symbol in expr.free_symbols} - {*names}:
            raise RewriteError(f"its sizes depend on {', '.join(sorted(unknown))}, which no input shows")
        asked.append(f"({printed(expr)})")
    fits = _FITS.format(", ".join(names), " and ".join(dict.fromkeys(asked)) or "True")
    plain = {name: f"n{number}" for number, name in enumerate(names, 1)}  # symbols are numbered as torch likes
    return tuple(map(partial(_renamed, plain), shapes)), re.sub(
        r"\w+", lambda found: plain.get(found[0], found[0]), fits
    )


def _free(size: object) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _names(shapes: Sequence[object]) -> list[str]:
    """The free sizes; those of the batch last."""
    given = [shape for shape in shapes if isinstance(shape, tuple)]
    sizes = [size for part in (slice(1, None), slice(1)) for shape in given for size in shape[part]]
    return list(dict.fromkeys(size for size in sizes if isinstance(size, str)))


def _sizes(value: Tensor) -> tuple[int | str, ...]:
    """Sizes of one tensor."""
    return tuple(_named(size) if _free(size) else int(size) for size in value.shape)


def _renamed(names: Mapping[str, str], shape: object) -> object:
    return tuple(names.get(size, size) for size in shape) if isinstance(shape, tuple) else shape


def _named(size: Any) -> str:
    if not size.node.expr.is_Symbol:
        raise RewriteError(f"a size of its inputs is a multiple ({size.node.expr})")
    return str(size.node.expr)
