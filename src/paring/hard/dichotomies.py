"""All the ways in which one threshold unit can split a set of points.

A split of the first k + 1 points restricts to one of the first k. So a tree whose level k holds the splits of the
first k points has only realisable nodes, and as many decisions as there are splits, not 2^N. The plane of a node puts
the next point on one side for free; only the other side is decided, in integers.

In general position (no d + 1 points on a plane) there are 2 sum_{k <= d} C(N - 1, k) of them (Cover 1965).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from paring.hard.exact import Integers, Plane, decide, integers
from paring.hard.feasible import Labels, problem


def cover(points: int, inputs: int) -> int:
    """Number of linearly separable dichotomies of so many points in general position."""
    return 2 * sum(comb(points - 1, k) for k in range(inputs + 1))


def dichotomies(points: ArrayLike) -> Iterator[Labels]:
    """Every linearly separable dichotomy of the points whose first label is +1; the others are their opposites.

    Args:
        points: (N, d), N >= 1. Equal points get equal labels.

    Yields:
        (N,) of +1 and -1, each once; the constant one is among them.
    """
    x, _ = problem(points, np.zeros(len(np.asarray(points)), dtype=np.int8))
    distinct, back = np.unique(x, axis=0, return_inverse=True)
    first = back.reshape(-1)[0]
    order = np.concatenate([[first], np.delete(np.arange(len(distinct)), first)])
    rows = integers(distinct[order])
    place = np.empty(len(order), dtype=np.intp)
    place[order] = np.arange(len(order))
    everywhere = Plane((0,) * x.shape[1], 1)
    for labels in _grow(rows, np.ones(1, dtype=np.int8), everywhere):
        yield labels[place[back.reshape(-1)]]


def _grow(rows: Integers, labels: Labels, plane: Plane) -> Iterator[Labels]:
    known = len(labels)
    if known == len(rows):
        yield labels
        return
    z = rows[known] @ np.array([*plane.weight, plane.bias], dtype=object)
    for side in (1, -1):
        longer = np.append(labels, np.int8(side))
        found = plane if side * z > 0 else decide(rows[: known + 1], longer)
        if isinstance(found, Plane):
            yield from _grow(rows, longer, found)
