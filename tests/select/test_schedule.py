"""Schedules against values computed by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from paring.select import CosineDrop, Cubic, Geometric


def test_cubic_is_the_formula_of_the_paper() -> None:
    schedule = Cubic(final=0.9, initial=0.1, begin=0.2, end=0.6)
    assert schedule(0.0) == schedule(0.2) == pytest.approx(0.1)
    assert schedule(0.4) == pytest.approx(0.9 - 0.8 * 0.5**3)
    assert schedule(0.3) == pytest.approx(0.9 - 0.8 * 0.75**3)
    assert schedule(0.6) == schedule(1.0) == 0.9


def test_cosine_drop() -> None:
    schedule = CosineDrop(start=0.3, end=0.8)
    assert schedule(0.0) == 0.3
    assert schedule(0.4) == pytest.approx(0.15)
    assert schedule(0.2) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert schedule(0.8) == schedule(0.9) == 0.0


def test_geometric_grows_by_the_same_factor() -> None:
    schedule = Geometric(200.0)
    values = [schedule(step / 84) for step in range(85)]
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(200.0)
    assert all(b / a == pytest.approx(1.0651, abs=1e-4) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cubic(final=1.2),
        lambda: Cubic(final=0.9, begin=0.5, end=0.5),
        lambda: CosineDrop(start=0.0),
        lambda: CosineDrop(end=1.5),
        lambda: Geometric(0.5),
        lambda: Geometric(math.inf),
    ],
)
def test_refuses_what_makes_no_sense(make: object) -> None:
    with pytest.raises(ValueError, match=r"must|has to"):
        make()  # type: ignore[operator]
