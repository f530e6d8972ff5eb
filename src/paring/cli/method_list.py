"""The methods that `--method` takes: all of `paring.methods`, found by themselves, and listed by what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from paring import methods
from paring.core import GOALS, Method


def method_name(kind: type[Method]) -> str:
    """Its name on the command line: `RigL` is rigl, `AtInit` at_init, `SparseVD` sparse_vd."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][A-Za-z])", "_", kind.__name__).lower() if kind is not Method else "dense"


def _found() -> Iterator[tuple[str, type[Method]]]:
    for name in methods.__all__:
        kind = getattr(methods, name)
        if isinstance(kind, type) and issubclass(kind, Method) and kind.goal is not None:
            yield method_name(kind), kind


METHODS: dict[str, type[Method]] = dict(sorted(_found()))
"""Every method of `paring.methods` that stands alone, by its name on the command line."""


def listed() -> str:
    """One line for every method, under what it is for."""
    width = max(map(len, METHODS))
    lines = []
    for goal, heading in GOALS.items():
        lines.append(f"  {heading}")
        for name, kind in METHODS.items():
            if kind.goal == goal:
                lines.append(f"    {name:<{width}} {_about(kind)}")
    return "\n".join(lines)


def _about(kind: type[Method]) -> str:
    """The first sentence of its docstring."""
    if kind is Method:
        return "Ordinary training: nothing goes."
    return (kind.__doc__ or "").strip().splitlines()[0]
