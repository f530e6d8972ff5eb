"""Numbers that may differ from layer to layer: one for all, or one for each name or pattern, the first match counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from paring.core import validate

Pairs: TypeAlias = Mapping[str, float] | Sequence[tuple[str, float]]
ByLayer: TypeAlias = float | Pairs


def pairs_of(given: Pairs) -> tuple[tuple[str, float], ...]:
    """Pairs (layer pattern, number), from a mapping or from pairs."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((str(name), float(value)) for name, value in pairs)


def as_by_layer(value: Any, name: str, interval: str) -> None:
    """Make a field of a frozen value a number or a tuple of pairs, all of them probabilities in an interval.

    Raises:
        ValueError: one of them lies outside.
    """
    given: ByLayer = getattr(value, name)
    object.__setattr__(value, name, float(given) if isinstance(given, int | float) else pairs_of(given))
    for layer, number in named(given):
        if not validate.contains(interval, number):
            told = f"{name}={number}" + (f" for {layer!r}" if layer else "")
            raise ValueError(f"{type(value).__name__}({told}): a probability, in {interval}")


def named(given: ByLayer) -> tuple[tuple[str, float], ...]:
    """Pairs (layer pattern, number); one number for all has the empty name."""
    return (("", float(given)),) if isinstance(given, int | float) else pairs_of(given)


def value_at(given: ByLayer, layers: Sequence[str], default: float) -> float:
    """What is given for these layers, which go together."""
    if isinstance(given, int | float):
        return float(given)
    found = pairs_of(given)
    return next((value for pattern, value in found if any(fnmatchcase(layer, pattern) for layer in layers)), default)
