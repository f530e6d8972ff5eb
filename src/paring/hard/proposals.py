"""Candidate targets for the layer below, from the loss of a layer on what the layer below outputs now.

The loss of a unit is the least hinge loss min_{w, b} sum_i max(0, 1 - t_i (w . h_i + b)), a linear programme; it is
zero exactly when the targets are linearly separable. Its optimal weights give the heuristic gradient of the loss with
respect to the outputs h of the layer below,

    G_ij = - sum_u t_iu w_uj [example i within the margin of unit u]

and the targets sign(-G) of the heuristic. Four kinds of candidates:

* flip: one output h_ij goes to its target, in order of falling |G_ij|, then outputs without gradient at random;
* refit: a unit gets all its targets sign(-G), is fitted to them by least hinge loss, and outputs what it can;
* redraw: a unit gets a random plane through the midst of the points;
* shift: a unit gets a plane parallel to that of some unit (parity is a stack of these).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paring.hard.feasible import highs
from paring.hard.outcome import Patterns

Reals = NDArray[np.float64]
_ZERO = 1e-7


@dataclass(frozen=True)
class Fit:
    """Least hinge loss of one unit, and weights that have it."""

    loss: float
    weight: Reals
    bias: float


@dataclass
class Fitter:
    """Least hinge losses, each computed once.

    Args:
        spent: linear programmes solved.
    """

    spent: int = 0
    _known: dict[tuple[bytes, bytes], Fit] = field(default_factory=dict)

    def fit(self, points: Reals, targets: Patterns) -> Fit:
        """The unit of least hinge loss on the examples with nonzero targets."""
        key = (points.tobytes(), targets.tobytes())
        if key not in self._known:
            self.spent += 1
            self._known[key] = _least_hinge(points, targets)
        return self._known[key]

    def loss(self, points: Reals, targets: Patterns) -> float:
        """Summed over the units (columns of the targets)."""
        return sum(self.fit(points, column).loss for column in targets.T)

    def gradient(self, outputs: Patterns, targets: Patterns) -> Reals:
        """G, (N, units of the layer below)."""
        h = outputs.astype(np.float64)
        total = np.zeros_like(h)
        for column in targets.T:
            unit = self.fit(h, column)
            within = column * (h @ unit.weight + unit.bias) < 1 - _ZERO
            total -= np.outer(column * within, unit.weight)
        return np.where(np.abs(total) > _ZERO, total, 0.0)


def _least_hinge(points: Reals, targets: Patterns) -> Fit:
    used = targets != 0
    x, t = points[used], targets[used].astype(np.float64)
    count, size = x.shape
    if count == 0:
        return Fit(0.0, np.zeros(size), -1.0)
    rows = np.hstack([-t[:, None] * x, -t[:, None], -np.identity(count)])
    cost = np.concatenate([np.zeros(size + 1), np.ones(count)])
    bounds = [(None, None)] * (size + 1) + [(0.0, None)] * count
    found = highs()(cost, A_ub=rows, b_ub=-np.ones(count), bounds=bounds, method="highs")
    if found.x is None:
        raise ArithmeticError(f"the solver gave no least hinge loss of {count} examples: {found.message}")
    loss = 0.0 if found.fun < _ZERO else float(found.fun)
    return Fit(loss, found.x[:size], float(found.x[size]))


def proposals(
    fitter: Fitter, below: Reals, outputs: Patterns, targets: Patterns, flips: int, rng: np.random.Generator
) -> Iterator[Patterns]:
    """Candidates for `outputs`, each differing from it.

    Args:
        fitter: solves and counts the linear programmes.
        below: what the layer with these outputs sees, (N, d).
        outputs: of the layer now, (N, units).
        targets: of the layer above, (N, units above).
        flips: number of single flips.
        rng: source of what is random.
    """
    gradient = fitter.gradient(outputs, targets)
    wanted = np.sign(-gradient).astype(np.int8)
    yield from _flips(outputs, gradient, wanted, flips, rng)
    for unit in range(outputs.shape[1]):
        goal = np.where(wanted[:, unit] == 0, outputs[:, unit], wanted[:, unit]).astype(np.int8)
        if (goal != outputs[:, unit]).any():
            fit = fitter.fit(below, goal)
            yield from _replaced(outputs, unit, below @ fit.weight + fit.bias)
        other = fitter.fit(below, outputs[:, rng.integers(outputs.shape[1])])
        for weight in (rng.standard_normal(below.shape[1]), other.weight):
            z = below @ weight
            yield from _replaced(outputs, unit, z - rng.uniform(z.min(), z.max()))


def _flips(
    outputs: Patterns, gradient: Reals, wanted: Patterns, flips: int, rng: np.random.Generator
) -> Iterator[Patterns]:
    size = np.where(wanted == -outputs, np.abs(gradient), 0.0)
    order = np.lexsort((rng.random(size.size), -size.ravel()))
    agreed = (wanted == outputs).ravel()
    for place in [place for place in order if not agreed[place]][:flips]:
        flipped = outputs.copy()
        flipped.flat[place] *= -1
        yield flipped


def _replaced(outputs: Patterns, unit: int, z: Reals) -> Iterator[Patterns]:
    """The outputs with those of one unit replaced, when that changes them."""
    column = np.where(z > 0, 1, -1).astype(np.int8)
    if (column != outputs[:, unit]).any():
        changed = outputs.copy()
        changed[:, unit] = column
        yield changed
