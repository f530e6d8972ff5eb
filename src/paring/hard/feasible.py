"""Are targets linearly separable? Yes, with a plane of largest margin, or no, with the points that forbid it.

    maximise m   subject to   t_i (w . x_i + b) >= m   and   |w_j| <= 1

is a linear programme (HiGHS, through scipy). m is the distance from the plane to the nearest point in the L1 norm, and
half the distance between the convex hulls of the two classes; its dual variables are the coefficients of the nearest
points of the hulls. m = 0 means that the hulls meet. Points are centred and scaled first.

Whatever floating point says is checked in integers (`paring.hard.exact`), and decided there where it does not hold:
both answers are exact for the given binary floats. t = 0 leaves an example out. A unit with z = 0 outputs -1, so "weakly
separable with the positive side strict" would suffice; for finitely many points that is the same, by a shift of b.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paring.hard.exact import Meeting, Plane, decide, integers, meeting

Points = NDArray[np.float64]
Labels = NDArray[np.int8]
_SUPPORT = 1e-9
_LARGEST = 1e150  # squares and sums of these still fit


class CertificateError(ValueError):
    """A certificate that does not certify; the message names the example."""


@dataclass(frozen=True)
class Separable:
    """A unit that outputs its targets: t_i (weight . x_i + bias) > 0 for every t_i != 0.

    Args:
        weight: one number per input.
        bias: its threshold is -bias.
        margin: least Euclidean distance of a point from the plane; infinite when there is but one class.
    """

    weight: tuple[float, ...]
    bias: float
    margin: float

    def check(self, points: ArrayLike, targets: ArrayLike) -> None:
        """Verify in rational arithmetic, rounding nothing.

        Raises:
            CertificateError: some example is on the wrong side, or on the plane.
        """
        x, t = problem(points, targets)
        bad = _wrong_side(x, t, self.weight, self.bias)
        if bad is not None:
            raise CertificateError(f"example {bad} with the target {t[bad]} is not strictly on its side of the plane")


@dataclass(frozen=True)
class Inseparable:
    """A point of both convex hulls: sum λ_i x_i over the positive rows = sum λ_i x_i over the negative rows, λ > 0.

    Args:
        rows: the examples that it takes, at most inputs + 2.
        coefficients: λ, exact, with sum 1/2 in either class.
    """

    rows: tuple[int, ...]
    coefficients: tuple[Fraction, ...]

    def check(self, points: ArrayLike, targets: ArrayLike) -> None:
        """Verify in rational arithmetic, rounding nothing.

        Raises:
            CertificateError: the coefficients prove nothing about these points.
        """
        x, t = problem(points, targets)
        if not self.rows or any(value <= 0 for value in self.coefficients) or (t[list(self.rows)] == 0).any():
            raise CertificateError("coefficients must be positive, on examples that have a target")
        signed = [value * int(t[row]) for row, value in zip(self.rows, self.coefficients, strict=True)]
        for column in (*x[list(self.rows)].T.tolist(), [1.0] * len(self.rows)):
            if sum(value * Fraction(entry) for value, entry in zip(signed, column, strict=True)):
                raise CertificateError(f"the combination of the examples {self.rows} is not the same in both classes")


def separate(points: ArrayLike, targets: ArrayLike) -> Separable | Inseparable:
    """Whether one threshold unit can output the targets.

    Args:
        points: (N, d), finite.
        targets: (N,) of +1, -1, and 0 for examples that do not matter.

    Returns:
        `Separable` with a plane of largest L1 margin (of any margin where that is too small for floating point), or
        `Inseparable`. Both have been checked exactly.

    Raises:
        ValueError: shapes that do not fit, entries that are no numbers, targets other than -1, 0 and 1; or points so
            close that no weights in double precision separate them, though real ones would.
        ImportError: scipy is missing.
    """
    x, t = problem(points, targets)
    used = np.flatnonzero(t)
    if len(set(t[used].tolist())) < 2:
        return Separable((0.0,) * x.shape[1], float(t[used[0]]) if len(used) else -1.0, float("inf"))
    weight, bias, support = _widest(x[used], t[used])
    if weight is not None and _holds(x[used], t[used], weight, bias):
        return _separable(x[used], t[used], weight, bias)
    for rows in (used[support], used):
        found = certify(x[rows], t[rows])
        if isinstance(found, Meeting):
            return Inseparable(tuple(int(rows[r]) for r in found.rows), found.coefficients)
    assert isinstance(found, Plane)
    weight, bias = _floats(found, x[used], t[used])
    if not _holds(x[used], t[used], weight, bias):
        raise ValueError(
            f"the targets of {len(used)} examples are linearly separable, but double precision has no weights that do it; "
            "move nearly equal examples of different targets apart, or give them one target"
        )
    return _separable(x[used], t[used], weight, bias)


def certify(points: Points, labels: Labels) -> Plane | Meeting:
    """The exact answer alone, without a margin: of points and labels as `problem` returns them, no label 0."""
    found = decide(integers(points), labels)
    return found if isinstance(found, Plane) else meeting(*found)


def problem(points: ArrayLike, targets: ArrayLike) -> tuple[Points, Labels]:
    """Both as arrays, checked.

    Raises:
        ValueError: see `separate`.
    """
    x, t = np.asarray(points, dtype=np.float64), np.asarray(targets)
    if x.ndim != 2 or t.ndim != 1 or len(x) != len(t):
        raise ValueError(f"points of shape {x.shape} and targets of shape {t.shape}: must be (N, d) and (N,)")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} coordinates are not finite; leave these examples out")
    if np.abs(x).max(initial=0.0) > _LARGEST:
        raise ValueError(f"coordinates up to {np.abs(x).max():.3g}: rescale them to at most {_LARGEST:g}")
    if t.dtype == np.bool_:
        raise ValueError(
            "targets are booleans: give -1 and 1 (2 * targets - 1), since 0 is for examples that do not matter"
        )
    if not np.isin(t, (-1, 0, 1)).all():
        found = np.unique(t)[:6].tolist()
        raise ValueError(f"targets {found}: must be -1, 1, or 0 for an example that does not matter")
    return x, t.astype(np.int8)


def _widest(x: Points, t: Labels) -> tuple[NDArray[np.float64] | None, float, NDArray[np.intp]]:
    """Weights of largest margin (None: no margin that floating point can see), and the examples that bound it."""
    centre = x.mean(axis=0)
    moved = x - centre
    scale = float(np.abs(moved).max(initial=0.0))
    if scale == 0 or not np.isfinite(scale):
        return None, 0.0, np.arange(len(x))
    count, size = x.shape
    rows = np.hstack([-t[:, None] * (moved / scale), -t[:, None].astype(np.float64), np.ones((count, 1))])
    bounds = [(-1.0, 1.0)] * size + [(None, None)] * 2
    cost = np.array([0.0] * (size + 1) + [-1.0])
    found = highs()(cost, A_ub=rows, b_ub=np.zeros(count), bounds=bounds, method="highs")
    if found.x is None:
        return None, 0.0, np.arange(count)
    weight = found.x[:size]
    bias = float(found.x[size] * scale - weight @ centre)
    return weight, bias, np.flatnonzero(-found.ineqlin.marginals > _SUPPORT)


def highs() -> Any:
    """`scipy.optimize.linprog`.

    Raises:
        ImportError: scipy is missing.
    """
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ImportError("linear separability needs scipy: pip install 'paring[hard]'") from error
    return linprog


def _holds(x: Points, t: Labels, weight: NDArray[np.float64], bias: float) -> bool:
    """Right in floating point, as a network will compute it, and right exactly."""
    return bool((t * (x @ weight + bias) > 0).all()) and _wrong_side(x, t, weight.tolist(), bias) is None


def _wrong_side(x: Points, t: Labels, weight: Any, bias: float) -> int | None:
    exact = [Fraction(value) for value in weight]
    for row, (point, label) in enumerate(zip(x.tolist(), t.tolist(), strict=True)):
        if label:
            z = sum((w * Fraction(v) for w, v in zip(exact, point, strict=True)), Fraction(bias))
            if label * z <= 0:
                return row
    return None


def _separable(x: Points, t: Labels, weight: NDArray[np.float64], bias: float) -> Separable:
    margin = float((t * (x @ weight + bias)).min() / np.linalg.norm(weight))
    return Separable(tuple(weight.tolist()), float(bias), margin)


def _floats(plane: Plane, x: Points, t: Labels) -> tuple[NDArray[np.float64], float]:
    """The integer weights, as ratios to the largest where double precision does not hold them, and the bias half way."""
    largest = max(map(abs, plane.weight))
    exact = [Fraction(value, 1 if largest < 2**53 else largest) for value in plane.weight]
    weight = np.array([float(value) for value in exact])
    z = [sum(Fraction(w) * Fraction(v) for w, v in zip(weight.tolist(), point, strict=True)) for point in x.tolist()]
    above, below = (pick(z[row] for row in np.flatnonzero(t == side)) for pick, side in ((min, 1), (max, -1)))
    return weight, float(-(above + below) / 2)
