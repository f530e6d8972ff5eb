"""Numbers that may differ from layer to layer: one for all, or one for each name or pattern, the first match counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

Pairs: TypeAlias = Mapping[str, float] | Sequence[tuple[str, float]]
ByLayer: TypeAlias = float | Pairs


def pairs_of(given: Pairs) -> tuple[tuple[str, float], ...]:
    """Pairs (layer pattern, number), from a mapping or from pairs."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((str(name), float(value)) for name, value in pairs)


def settled(given: ByLayer) -> float | tuple[tuple[str, float], ...]:
    """A number, or pairs: what can be part of a frozen value."""
    return float(given) if isinstance(given, int | float) else pairs_of(given)


def named(given: ByLayer) -> tuple[tuple[str, float], ...]:
    """Pairs (layer pattern, number); one number for all has the empty name."""
    return (("", float(given)),) if isinstance(given, int | float) else pairs_of(given)


def value_at(given: ByLayer, layers: Sequence[str], default: float) -> float:
    """What is given for these layers, which go together."""
    if isinstance(given, int | float):
        return float(given)
    found = pairs_of(given)
    return next((value for pattern, value in found if any(fnmatchcase(layer, pattern) for layer in layers)), default)
