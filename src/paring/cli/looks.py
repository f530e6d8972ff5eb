"""How a method looks in every chart: one colour, one name in words.

Colours belong to methods, so that a reader who knows one page can read the next. What stands after a comma or a colon is a
variant: it keeps the colour and gets another dash and mark. Names that are no methods (layers, curves) take colours in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

INK = "#123456"  # drawn with this, written as currentColor
PALETTE = ("#2f7ed8", "#d9652b", "#1a9c78", "#c667a8", "#d09a1a", "#55a9d6", "#8f6fd1")
_MORE = ("#c2414b", "#7f8f2a", "#8a6a4f", "#4b5fc4", "#2aa7a1")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_MARKERS = "osD^vPX<>*"

NAMES = {
    "L0": "L0",
    "CS": "Continuous Sparsification",
    "IMP": "iterative pruning",
    "IMP-C": "iterative pruning, nothing rewound",
    "GMP": "gradual pruning",
    "STR": "soft thresholds",
    "random": "random masks",
    "L0hc": "L0, as published",
    "ste": "straight-through",
    "sste": "saturated straight-through",
    "ftp-sh": "soft hinge",
    "lsq": "learned step",
    "relu": "no threshold",
    "saturated-relu": "saturated",
    "approx-sign": "approximate sign",
    "saturating-hinge": "saturating hinge",
    "log-loss": "log loss",
    "k-means": "k-means",
}

_COLOURS = {
    "dense": INK,
    "relu": INK,
    **dict.fromkeys(("L0", "L0 + Shrink", "L0hc", "entropy rounding", "ftp-sh"), PALETTE[0]),
    **dict.fromkeys(("GMP", "uniform by magnitude", "BC-GHS", "deep compression", "sste"), PALETTE[1]),
    **dict.fromkeys(("IMP", "IMP-C", "BC-GNJ", "codebooks", "lsq"), PALETTE[2]),
    **dict.fromkeys(("CS", "combined", "ste", "SBP"), PALETTE[3]),
    **dict.fromkeys(("RigL", "uniform", "uniform by scale", "hinge", "GD"), PALETTE[4]),
    **dict.fromkeys(("SNIP", "rate-distortion grid", "approx-sign", "GL"), PALETTE[5]),
    **dict.fromkeys(("SparseVD", "sparse variational dropout", "k-means", "log-loss"), PALETTE[6]),
    **dict.fromkeys(("STR", "adaptive precision", "saturating-hinge"), _MORE[0]),
    **dict.fromkeys(("slimming", "hashed", "saturated-relu"), _MORE[1]),
    **dict.fromkeys(("random", "soft sharing"), _MORE[2]),
    **dict.fromkeys(("edge-popup", "MIRACLE"), _MORE[3]),
    **dict.fromkeys(("supermask", "EPR"), _MORE[4]),
}


@dataclass(frozen=True)
class Look:
    """Colour, dash and mark of one series, and its name in a legend."""

    colour: str
    dash: Any
    marker: str
    name: str


def family(name: str) -> str | None:
    """The method that this name is a variant of: the longest known name that it begins with; None for no method."""
    fits = [one for one in _COLOURS if name == one or (name.startswith(one) and name[len(one)] in " ,:(")]
    return max(fits, key=len, default=None)


def colour_of(name: str) -> str | None:
    """The method's colour on every page; None for what is no method."""
    method = family(name)
    return None if method is None else _COLOURS[method]


def in_words(name: str) -> str:
    """The name with its abbreviation spelt out: "GMP, one threshold" is "gradual pruning, one threshold"."""
    method = family(name)
    return name if method is None else NAMES.get(method, method) + name[len(method) :]


def looks(names: Iterable[str]) -> list[Look]:
    """One look per series, no two alike: methods in their colours, everything else in turn; variants by dash and mark."""
    names = list(names)
    taken = {colour_of(name) for name in names}
    free = [colour for colour in PALETTE if colour not in taken] or list(PALETTE)
    used: dict[str, int] = {}
    found, turn = [], 0
    for place, name in enumerate(names):
        colour = colour_of(name)
        if colour is None:
            colour, turn = free[turn % len(free)], turn + 1
        variant = used.get(colour, 0)
        used[colour] = variant + 1
        found.append(Look(colour, _DASHES[variant % len(_DASHES)], _MARKERS[place % len(_MARKERS)], in_words(name)))
    return found
