"""Products that einsum adds up, against a loop over all combinations of letters."""

from __future__ import annotations

import itertools

import pytest

from paring.analysis.einsum_letters import contractions


def by_loops(one: str, two: str, out: str, sizes: dict[str, int]) -> int:
    """One multiplication for each setting of all letters of both operands, if some letter is summed."""
    letters = sorted(set(one + two))
    if set(letters) <= set(out):
        return 0
    return sum(1 for _ in itertools.product(*(range(sizes[x]) for x in letters)))


SIZES = {"a": 2, "b": 3, "c": 4, "d": 5}


@pytest.mark.parametrize(
    ("one", "two", "out"),
    [
        ("ab", "bc", "ac"),
        ("abc", "abd", "acd"),
        ("ab", "ab", ""),
        ("ab", "ab", "ab"),
        ("a", "b", "ab"),
        ("ab", "c", "c"),
    ],
)
def test_two_operands(one: str, two: str, out: str) -> None:
    shapes = [tuple(SIZES[x] for x in term) for term in (one, two)]
    assert contractions(f"{one},{two}->{out}", shapes) == by_loops(one, two, out, SIZES)


def test_more_operands_go_from_left_to_right_or_as_the_path_says() -> None:
    shapes = [(2, 3), (3, 4), (4, 5)]
    assert contractions("ab, bc, cd -> ad", shapes) == 2 * 3 * 4 + 2 * 4 * 5
    assert contractions("ab,bc,cd->ad", shapes, [1, 2, 0, 1]) == 3 * 4 * 5 + 2 * 3 * 5
    assert contractions("ab,bc,cd,de->ae", [*shapes, (5, 2)]) == 2 * 3 * 4 + 2 * 4 * 5 + 2 * 5 * 2


def test_without_an_arrow_and_with_dots() -> None:
    assert contractions("ab,bc", [(2, 3), (3, 4)]) == 24
    assert contractions("...ab,...bc->...ac", [(7, 2, 3), (7, 3, 4)]) == 7 * 24
    assert contractions("...ab,bc->...ac", [(6, 7, 2, 3), (3, 4)]) == 6 * 7 * 24
    assert contractions("...ab,...bc", [(7, 2, 3), (1, 3, 4)]) == 7 * 24
    assert contractions("ab->ba", [(2, 3)]) == 0
