"""The two tables of operations."""

from __future__ import annotations

from itertools import combinations

from paring.analysis import ops
from paring.analysis.rules import ALIKE, FIXED, FIXED_LAYERS, FREE, FREE_LAYERS

SETS = {
    "moves": ops.MOVES,
    "pointwise": ops.POINTWISE,
    "casts": ops.CASTS,
    "dropouts": ops.DROPOUTS,
    "pairwise": frozenset(ops.PAIRWISE),
    "joins": ops.JOINS,
    "reductions": ops.REDUCTIONS,
    "pools": ops.POOLS,
    "pads": ops.PADS,
    "softmaxes": ops.SOFTMAXES,
    "like": ops.LIKE,
    "layers": frozenset(FREE_LAYERS),
}


def test_both_tables_know_the_same_operations() -> None:
    assert FIXED.keys() == FREE.keys()
    assert FIXED_LAYERS.keys() == FREE_LAYERS.keys()
    assert FIXED.keys() >= ALIKE.keys()
    assert FIXED.keys() >= frozenset().union(*SETS.values())


def test_no_operation_has_two_rules() -> None:
    for (one, a), (other, b) in combinations(SETS.items(), 2):
        assert not a & b, f"{one} and {other} both have {sorted(a & b)}"
