"""Linear separability: both answers carry a certificate that holds exactly."""

from __future__ import annotations

import builtins
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.hard.dichotomies import cover, dichotomies
from paring.hard.exact import Plane, decide, integers
from paring.hard.feasible import CertificateError, Inseparable, Separable, separate

CUBE = {n: np.array(list(product([-1.0, 1.0], repeat=n))) for n in (1, 2, 3)}


def _perceptron(x: np.ndarray, t: np.ndarray, rounds: int) -> bool:
    """Whether Rosenblatt's rule gets all right; it does for separable points, after finitely many mistakes."""
    points = np.hstack([x, np.ones((len(x), 1))]) * t[:, None]
    w = np.zeros(points.shape[1])
    for _ in range(rounds):
        wrong = points @ w <= 0
        if not wrong.any():
            return True
        w += points[np.flatnonzero(wrong)[0]]
    return False


@given(st.data())
def test_both_answers_are_certified_and_agree_with_the_perceptron(data: st.DataObject) -> None:
    count, size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    seed, power = data.draw(st.integers(0, 10**6)), data.draw(st.integers(-30, 30))
    rng = np.random.default_rng(seed)
    grid = rng.integers(-2, 3, (count, size)).astype(float)
    x = (grid + data.draw(st.sampled_from([0, 1000]))) * 10.0**power
    t = rng.choice([-1, 0, 1], count, p=[0.45, 0.1, 0.45])
    found = separate(x, t)
    found.check(x, t)
    used = t != 0
    assert isinstance(found, Separable) == _perceptron(grid[used], t[used], 3000)
    if isinstance(found, Separable):
        assert ((x @ np.array(found.weight) + found.bias > 0) == (t > 0))[used].all()
    else:
        assert len(found.rows) <= size + 2
        for side in (1, -1):
            mine = [c for row, c in zip(found.rows, found.coefficients, strict=True) if t[row] == side]
            assert sum(mine) == Fraction(1, 2)


def test_the_margin_is_the_largest() -> None:
    found = separate([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]], [-1, -1, 1, 1])
    assert isinstance(found, Separable)
    assert found.margin == pytest.approx(2.0)
    assert -found.bias / found.weight[0] == pytest.approx(2.0)


@given(st.integers(0, 10**6))
def test_no_direction_of_a_fine_grid_has_a_larger_margin(seed: int) -> None:
    """L1 distance: min t (w . x + b) over max |w_j|."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, 2))
    t = np.where(x @ rng.normal(size=2) > 0, 1, -1)
    found = separate(x, t)
    assert isinstance(found, Separable)
    if abs(t.sum()) == len(t):
        assert found.margin == float("inf")
        return
    w = np.array(found.weight)
    mine = (t * (x @ w + found.bias)).min() / np.abs(w).max()
    for angle in np.linspace(0, 2 * np.pi, 721):
        other = np.array([np.cos(angle), np.sin(angle)])
        other /= np.abs(other).max()
        z = x @ other
        assert (z[t > 0].min() - z[t < 0].max()) / 2 <= mine + 1e-9


def test_exclusive_or_is_not_separable() -> None:
    found = separate(CUBE[2], CUBE[2].prod(axis=1))
    assert isinstance(found, Inseparable)
    assert sorted(found.rows) == [0, 1, 2, 3]
    assert found.coefficients == (Fraction(1, 4),) * 4


def test_degenerate_input() -> None:
    assert separate([[1.0], [2.0]], [1, 1]) == Separable((0.0,), 1.0, float("inf"))
    assert separate([[1.0], [2.0]], [0, -1]) == Separable((0.0,), -1.0, float("inf"))
    assert separate([[1.0], [2.0]], [0, 0]).margin == float("inf")  # type: ignore[union-attr]
    assert separate(np.zeros((0, 3)), []) == Separable((0.0,) * 3, -1.0, float("inf"))
    same = separate([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]], [1, 1, -1])
    assert same == Inseparable((0, 2), (Fraction(1, 2),) * 2)
    assert isinstance(separate([[1.0, 2.0], [1.0, 2.0]], [1, 0]), Separable)
    constant = separate(np.zeros((2, 0)), [1, -1])
    assert isinstance(constant, Inseparable)


@pytest.mark.parametrize("gap", [1e-3, 1e-9, 1e-13])
def test_points_nearly_equal_are_separated(gap: float) -> None:
    x = np.array([[1.0, 0.0], [1.0 + gap, 0.0], [5.0, 1e6]])
    found = separate(x, [1, -1, 1])
    assert isinstance(found, Separable)
    found.check(x, [1, -1, 1])


def test_features_of_very_different_size() -> None:
    x = np.array([[1e12, 1e-12], [-1e12, 1e-12], [1e12, -1e-12], [-1e12, -1e-12]])
    t = [1, 1, -1, -1]
    found = separate(x, t)
    assert isinstance(found, Separable)
    found.check(x, t)
    assert isinstance(separate(x, [1, -1, -1, 1]), Inseparable)


def test_a_nearly_hit_point_of_the_other_class_is_seen() -> None:
    """The middle of a segment, moved by one unit in the last place off it or not at all."""
    x = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    assert isinstance(separate(x, [1, 1, -1]), Inseparable)
    x[2, 1] = np.nextafter(0.5, 1)
    found = separate(x, [1, 1, -1])
    assert isinstance(found, Separable)
    found.check(x, [1, 1, -1])


def test_certificates_that_are_none_are_refused() -> None:
    x, t = CUBE[2], np.array([-1, 1, 1, 1])
    good = separate(x, t)
    with pytest.raises(CertificateError, match="not strictly on its side"):
        good.check(x, [1, 1, 1, -1])
    with pytest.raises(CertificateError, match="not strictly"):
        Separable((1.0, 1.0), 0.0, 1.0).check(x, t)
    bad = Inseparable((0, 1), (Fraction(1, 2), Fraction(1, 2)))
    with pytest.raises(CertificateError, match="not the same in both classes"):
        bad.check(x, t)
    with pytest.raises(CertificateError, match="positive"):
        Inseparable((0, 1), (Fraction(1, 2), Fraction(0))).check(x, t)
    with pytest.raises(CertificateError, match="positive"):
        bad.check(x, [-1, 0, 1, 1])


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        ([1.0, 2.0], [1, 1], r"shape \(2,\)"),
        ([[1.0], [2.0]], [1, 1, 1], r"targets of shape \(3,\)"),
        ([[1.0], [float("nan")]], [1, 1], "1 coordinates are not finite"),
        ([[1.0], [2.0]], [1, 2], "must be -1, 1, or 0"),
        ([[1.0], [2.0]], [True, False], "targets are booleans"),
        ([[1e200], [2.0]], [1, -1], "rescale them to at most 1e"),
    ],
)
def test_what_is_no_problem_is_refused(x: Any, t: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        separate(x, t)


def test_separable_points_without_weights_in_double_precision() -> None:
    x = [[1.0], [1.0 + 2.0**-52]]
    rows = integers(np.array(x))
    assert isinstance(decide(rows, np.array([1, -1], dtype=np.int8)), Plane)
    with pytest.raises(ValueError, match="double precision has no weights"):
        separate(x, [1, -1])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match=r"pip install 'paring\[hard\]'"):
        separate([[0.0], [1.0]], [1, -1])


@pytest.mark.parametrize(("count", "size"), [(1, 2), (4, 1), (6, 2), (7, 3), (6, 4), (3, 5)])
def test_dichotomies_in_general_position_are_as_many_as_cover_counted(count: int, size: int) -> None:
    x = np.random.default_rng(count * size).normal(size=(count, size))
    found = [labels.tobytes() for labels in dichotomies(x)]
    assert 2 * len(set(found)) == 2 * len(found) == cover(count, size)


@pytest.mark.parametrize(("inputs", "functions"), [(1, 4), (2, 14), (3, 104)])
def test_threshold_functions_of_few_bits(inputs: int, functions: int) -> None:
    """The known numbers of linearly separable Boolean functions."""
    assert 2 * sum(1 for _ in dichotomies(CUBE[inputs])) == functions


def test_dichotomies_against_all_labelings() -> None:
    """On points of a grid, with repetitions and not in general position."""
    x = np.random.default_rng(5).integers(0, 3, (7, 2)).astype(float)
    x[4] = x[1]
    found = {labels.tobytes() for labels in dichotomies(x)}
    labelings = (np.array((1, *rest), dtype=np.int8) for rest in product([1, -1], repeat=6))
    naive = {labels.tobytes() for labels in labelings if isinstance(separate(x, labels), Separable)}
    assert found == naive
