"""Numbers by layer: from a number, a mapping or pairs, the same value in the end."""

from __future__ import annotations

import pytest

from paring.cli.arguments import parse_by_layer
from paring.core import short_repr
from paring.methods import L0, Price
from paring.methods.by_layer import named, value_at


def test_mappings_and_pairs_are_the_same() -> None:
    assert (
        L0(keep={"fc1": 0.8, "c*": 0.5}) == L0(keep=(("fc1", 0.8), ("c*", 0.5))) == L0(keep=[("fc1", 0.8), ("c*", 0.5)])
    )
    assert Price(layers={"fc1": 1}) == Price(layers=[("fc1", 1.0)])
    assert short_repr(L0(keep={"fc1": 0.8})) == "L0(keep=(('fc1', 0.8,),))"
    assert len({L0(keep={"fc1": 0.8}), L0(keep=(("fc1", 0.8),))}) == 1
    assert L0(keep=1 / 2) == L0(keep=0.5) != L0()  # left out, a trained network begins open


def test_the_first_match_counts_and_else_the_default() -> None:
    given = {"fc1": 0.8, "fc*": 0.5}
    assert [value_at(given, (name,), 0.1) for name in ("fc1", "fc2", "conv")] == [0.8, 0.5, 0.1]
    assert value_at(given, ("conv", "fc2"), 0.1) == 0.5
    assert value_at(0.3, ("conv",), 0.1) == 0.3
    assert named(0.3) == (("", 0.3),)


def test_words_of_a_command_line() -> None:
    assert parse_by_layer(["0.5"]) == 0.5
    assert parse_by_layer(["fc1", "0.8", "c*", "0.5"]) == (("fc1", 0.8), ("c*", 0.5))
    for wrong in ([], ["fc1"], ["fc1", "0.8", "fc2"], ["fc1", "x"]):
        with pytest.raises(ValueError, match=r"number|is not a number"):
            parse_by_layer(wrong)
