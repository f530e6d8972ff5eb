"""Feasible target propagation: a network, a proof that there is none, or neither."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from paring.hard.dichotomies import dichotomies
from paring.hard.feasible import CertificateError, Separable, separate
from paring.hard.outcome import Found, Infeasible, NotFound
from paring.hard.proposals import Fitter
from paring.hard.target_search import ftprop

CUBE = {n: np.array(list(product([-1.0, 1.0], repeat=n))) for n in (2, 3, 4)}
PARITY = {n: CUBE[n].prod(axis=1).astype(int) for n in CUBE}


def _runs(found: Found, x: np.ndarray, t: np.ndarray) -> None:
    """The network gets every example right: exactly, in torch, and by its own patterns."""
    found.check(x, t)
    z = found.network()(torch.tensor(x)).detach().numpy()
    wanted = t.reshape(len(t), -1)
    assert (np.sign(z) == wanted)[wanted != 0].all()
    assert (found.patterns(x)[-1] == wanted)[wanted != 0].all()
    assert found.margin > 0


@pytest.mark.parametrize(("inputs", "hidden"), [(2, [2]), (2, [3]), (3, [3]), (2, [2, 2]), (3, [3, 2])])
def test_parity_is_found(inputs: int, hidden: list[int]) -> None:
    found = ftprop(CUBE[inputs], PARITY[inputs], hidden, enumeration=0)
    assert isinstance(found, Found)
    assert found.by == "search"
    assert [len(layer) for layer in found.layers] == [*hidden, 1]
    _runs(found, CUBE[inputs], PARITY[inputs])
    below = CUBE[inputs]
    for patterns in found.patterns(CUBE[inputs])[:-1]:
        able = {labels.tobytes() for labels in dichotomies(below)}
        assert all((column * column[0]).astype(np.int8).tobytes() in able for column in patterns.T)
        below = patterns.astype(float)


@pytest.mark.parametrize(("inputs", "hidden", "networks"), [(2, [1], 6), (3, [2], 51 * 50 // 2), (2, [1, 3], None)])
def test_too_narrow_is_proved(inputs: int, hidden: list[int], networks: int | None) -> None:
    """Of 3 bits there are 104 threshold functions, 51 pairs of opposites without the constants."""
    found = ftprop(CUBE[inputs], PARITY[inputs], hidden, budget=20)
    assert isinstance(found, Infeasible)
    assert found.reason == "exhausted"
    assert networks is None or found.networks == networks


def test_a_perceptron_cannot_and_the_points_say_why() -> None:
    found = ftprop(CUBE[2], PARITY[2], [])
    assert isinstance(found, Infeasible)
    assert found.reason == "inseparable"
    assert found.certificate is not None
    found.certificate.check(CUBE[2], PARITY[2])
    assert isinstance(ftprop(CUBE[2], [1, 1, 1, -1], []), Found)


def test_equal_examples_of_contrary_targets() -> None:
    x, t = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0]]), np.array([[1, 1], [1, -1], [1, -1]])
    found = ftprop(x, t, [50])
    assert isinstance(found, Infeasible)
    assert found.reason == "conflict"
    assert found.rows == (0, 2)
    t[2, 1] = 0
    assert isinstance(ftprop(x, t, [2]), Found)


def test_not_found_is_no_proof() -> None:
    found = ftprop(CUBE[3], PARITY[3], [3], budget=3, enumeration=0)
    assert isinstance(found, NotFound)
    assert found.loss > 0
    again = ftprop(CUBE[3], PARITY[3], [2], budget=3, enumeration=10)
    assert isinstance(again, NotFound)


def test_enumeration_finds_what_the_search_had_no_time_for() -> None:
    found = ftprop(CUBE[3], PARITY[3], [3], budget=0)
    assert isinstance(found, Found)
    assert found.by == "enumeration"
    _runs(found, CUBE[3], PARITY[3])


def _exists(x: np.ndarray, t: np.ndarray, hidden: list[int]) -> bool:
    """Naive: every choice, with repetition, of any separable labelings as hidden patterns."""
    if not hidden:
        return all(isinstance(separate(x, column), Separable) for column in t.reshape(len(t), -1).T)
    labelings = [np.array((1, *rest), dtype=np.int8) for rest in product([1, -1], repeat=len(x) - 1)]
    able = [labels for labels in labelings if isinstance(separate(x, labels), Separable)]
    chosen = product(able, repeat=hidden[0])
    return any(_exists(np.stack(columns, axis=1).astype(float), t, hidden[1:]) for columns in chosen)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hidden", [[1], [2], [1, 2]])
def test_tiny_tasks_against_brute_force(seed: int, hidden: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 1)) if seed % 2 else rng.choice([-1.0, 1.0], (5, 2))
    t = rng.choice([-1, 1], (5, 1 + seed % 3 // 2))
    t[[row for row in range(5) if (x[:row] == x[row]).all(axis=1).any()]] = 0
    found = ftprop(x, t, hidden, budget=60, seed=seed)
    assert isinstance(found, Found | Infeasible)
    assert isinstance(found, Found) == _exists(x, t, hidden)
    if isinstance(found, Found):
        _runs(found, x, t)


def test_random_dichotomies_beyond_a_perceptron() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(14, 4))
    t = rng.choice([-1, 1], 14)
    assert isinstance(ftprop(x, t, []), Infeasible)
    found = ftprop(x, t, [4], enumeration=0)
    assert isinstance(found, Found)
    _runs(found, x, t)


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    runs = [ftprop(CUBE[2], PARITY[2], [3], seed=seed) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_it_starts_from_given_weights() -> None:
    """From weights that solve the task it moves nowhere."""
    known = ftprop(CUBE[2], PARITY[2], [2])
    assert isinstance(known, Found)
    start = [([unit.weight for unit in layer], [unit.bias for unit in layer]) for layer in known.layers[:-1]]
    found = ftprop(CUBE[2], PARITY[2], [2], start=start, seed=9)
    assert isinstance(found, Found)
    assert found.spent == 1
    assert (found.patterns(CUBE[2])[0] == known.patterns(CUBE[2])[0]).all()
    with pytest.raises(ValueError, match=r"shapes \[\(2, 2\)\]; the hidden layers need \[\(3, 2\)\]"):
        ftprop(CUBE[2], PARITY[2], [3], start=start)


def test_least_hinge_loss_and_its_gradient() -> None:
    """Exclusive or: no weights beat 0, whose loss is 4; of three examples the loss is zero. The gradient of the least
    loss with respect to the points is that at the optimal weights (envelope theorem): checked by differences."""
    fitter = Fitter()
    x = CUBE[2]
    assert fitter.fit(x, PARITY[2].astype(np.int8)).loss == pytest.approx(4.0)
    assert fitter.fit(x, np.array([1, -1, -1, 0], dtype=np.int8)).loss == 0.0
    t = np.array([[1], [1], [-1], [1], [-1]], dtype=np.int8)
    points = np.array([[1, 1], [1, -1], [1, -1], [-1, 1], [-1, -1]], dtype=np.int8)
    gradient = fitter.gradient(points, t)
    base = fitter.loss(points.astype(float), t)
    assert base == pytest.approx(2.0)
    for place in np.ndindex(points.shape):
        moved = points.astype(float)
        step = 1e-4 * -np.sign(gradient[place])
        moved[place] += step
        change = fitter.loss(moved, t) - base
        assert change <= gradient[place] * step + 1e-8


@pytest.mark.parametrize(
    ("x", "t", "hidden", "options", "message"),
    [
        (CUBE[2], [1, 1, 1], [2], {}, "targets of shape"),
        (CUBE[2], np.zeros((4, 0)), [2], {}, r"must be \(N,\) or \(N, outputs\)"),
        (np.zeros((0, 2)), [], [2], {}, "no examples"),
        (CUBE[2], [1, 1, 1, 3], [2], {}, "must be -1, 1, or 0"),
        (CUBE[2], [1, 1, 1, 1], [0], {}, "at least 1"),
        (CUBE[2], [1, 1, 1, 1], [2], {"beam": 0}, "beam=0"),
        (CUBE[2], [1, 1, 1, 1], [2], {"budget": -1}, "budget=-1"),
    ],
)
def test_what_is_no_task_is_refused(x: Any, t: Any, hidden: list[int], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ftprop(x, t, hidden, **options)  # type: ignore[arg-type]


def test_a_found_network_of_another_task_does_not_pass_the_check() -> None:
    found = ftprop(CUBE[2], PARITY[2], [2])
    assert isinstance(found, Found)
    with pytest.raises(CertificateError):
        found.check(CUBE[2], -PARITY[2])


@pytest.mark.parametrize("hidden", [2, "2", None])
def test_widths_are_a_list(hidden: object) -> None:
    with pytest.raises(ValueError, match="give a list of widths"):
        ftprop([[0.0], [1.0]], [-1, 1], hidden)  # type: ignore[arg-type]
