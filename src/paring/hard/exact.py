"""Linear separability in integers: an answer that no rounding can change, with its certificate.

Gordan (1873): of the two systems

    t_i (w . x_i + b) > 0 for all i                 sum_i λ_i t_i (x_i, 1) = 0,  λ >= 0,  λ != 0

exactly one has a solution. The second is solved as the first phase of a simplex method with Bland's rule (which cannot
cycle) and integer pivoting (Edmonds 1967: all entries stay integers over one common denominator); where it has no
solution, its dual variables solve the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.object_]


@dataclass(frozen=True)
class Plane:
    """Integers (w, b) with t_i (w . x_i + b) > 0 for every point."""

    weight: tuple[int, ...]
    bias: int


@dataclass(frozen=True)
class Meeting:
    """λ >= 0 with sum 1 for some rows: a point that lies in the convex hulls of both classes, in halves."""

    rows: tuple[int, ...]
    coefficients: tuple[Fraction, ...]


def integers(points: NDArray[np.float64]) -> Integers:
    """Rows (s x_i, s) of Python integers with the least s > 0 that allows it: binary floats are exact."""
    out = np.empty((points.shape[0], points.shape[1] + 1), dtype=object)
    ratios = [[value.as_integer_ratio() for value in point] for point in points.tolist()]
    scale = lcm(*(below for row in ratios for _, below in row))
    for row, pairs in zip(out, ratios, strict=True):
        row[:] = [above * (scale // below) for above, below in pairs] + [scale]
    return out


def decide(rows: Integers, labels: NDArray[np.int8]) -> Plane | tuple[list[int], list[int]]:
    """A plane that separates the rows, or the rows that prove that there is none, with positive integer coefficients.

    Args:
        rows: (N, d + 1) integers, homogeneous: (s x, s) with one s > 0.
        labels: (N,) of +1 and -1.

    Returns:
        A `Plane`, or indices k and integers c > 0 with sum_k c_k labels_k rows_k = 0.
    """
    columns = (rows * labels[:, None].astype(object)).T
    height, count = columns.shape
    table = np.zeros((height + 2, count + height + 2), dtype=object)
    table[:height, :count] = columns
    table[height, :count] = 1
    table[: height + 1, count : count + height + 1] = np.identity(height + 1, dtype=int).astype(object)
    table[height, -1] = 1
    table[-1, :count] = -table[:-1, :count].sum(axis=0)
    table[-1, -1] = -1
    basis, below = list(range(count, count + height + 1)), 1
    while (entering := next((j for j in range(count) if table[-1, j] < 0), None)) is not None:
        at = _leaving(table, basis, entering)
        pivot = table[at, entering]
        kept = table[at].copy()
        table = (table * pivot - np.multiply.outer(table[:, entering], kept)) // below
        table[at] = kept
        basis[at], below = entering, pivot
    if table[-1, -1] == 0:
        found = [(j, table[r, -1]) for r, j in enumerate(basis) if j < count and table[r, -1] > 0]
        return [j for j, _ in found], [c for _, c in found]
    plane = [table[-1, count + r] - below for r in range(height)]
    shared = gcd(*plane)
    return Plane(tuple(v // shared for v in plane[:-1]), plane[-1] // shared)


def _leaving(table: Integers, basis: list[int], entering: int) -> int:
    """Row with the least ratio of value and entry, the lowest variable among equals (Bland)."""
    best, row = None, -1
    for r in range(len(basis)):
        entry = table[r, entering]
        if entry > 0:
            ratio = (Fraction(table[r, -1], entry), basis[r])
            if best is None or ratio < best:
                best, row = ratio, r
    return row


def meeting(rows: list[int], coefficients: list[int]) -> Meeting:
    """The certificate with coefficients that sum to one."""
    total = sum(coefficients)
    return Meeting(tuple(rows), tuple(Fraction(c, total) for c in coefficients))
