"""Zeros and ones of a matrix, each under a probability that mixes what is known already; integers only.

The rows of a matrix (steps) are coded one after the other. The logarithm of the odds of a one is a weighted sum of

    bias      1
    lane      log2 of ones against zeros so far in the column (lane)
    near      log2 of ones against zeros in the steps t - l, over all lags l
    excess    log2 of ones so far in this step against what `lane` made expect
    lags      for every lag l: 1, -1 or 0 when there was a one, a zero or nothing in this lane at step t - l

The weights are stored, so that a reader learns nothing: `fit` finds them by Newton's method. All of it is exact integer
arithmetic (or sums of integers in float64 below 2^53), so that every machine finds the same weights and the same bytes.
Logarithms, features and weights are in units of 1/256.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paring.files.pare.entropy import WHOLE, Chances
from paring.files.pare.logs import log2, log2s

Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]
ONE = 256
LARGEST_WEIGHT = 8191
MOST_LAGS = 8
Where = Ints | slice
FIRST_CHUNK = 64
BLOCK = 1 << 16  # positions of a plane whose features are computed at once
_END = 16 * ONE
_PLAIN = 4  # features before the lags
_ROUNDS = 8
_MANY, _THIN = 1 << 14, 16  # of so many positions every 16th alone says where the fit begins
SQUASH = np.array([round(WHOLE / (1 + 2.0 ** (-x / ONE))) for x in range(-_END, _END + 1)]) / WHOLE


@dataclass(frozen=True)
class Mix:
    """The lags, and the weights of bias, lane, near, excess and every lag."""

    lags: tuple[int, ...]
    weights: tuple[int, ...]


def walk(mix: Mix, shape: tuple[int, int], coded: Flags | None, code: Callable[[int, Where, Chances], Ints]) -> None:
    """Go through a matrix in the order of coding, as a reader has to: position by position.

    Args:
        mix: lags and weights.
        shape: steps and lanes.
        coded: (steps, lanes), which positions are coded; None: all.
        code: (step, lanes, probabilities of a one) -> the zeros and ones there.
    """
    bias, lane, near, excess, *rest = mix.weights
    lagged = [(lag, weight) for lag, weight in zip(mix.lags, rest, strict=True) if weight]
    matrix = Matrix(shape, coded, lane)
    for step in range(shape[0]):
        chosen = matrix.start(step)
        if not matrix.count:
            continue
        odds = matrix.lanes() + (ONE * bias + (near * matrix.near(mix.lags) if near else 0))
        for lag, weight in lagged:
            if lag <= step:
                odds += weight * matrix.signs[step - lag][chosen]
        for start, stop in chunks(matrix.count) if excess else ((0, matrix.count),):
            own = odds[start:stop]
            if excess and start:
                own = own + excess * matrix.excess(start)
            matrix.found[start:stop] = code(step, part(chosen, start, stop), squash(own >> 8))
        matrix.end()


def features(lags: tuple[int, ...], plane: Ints, coded: Flags | None) -> tuple[Ints, Ints]:
    """What `walk` weights.

    Args:
        lags: of the model.
        plane: (steps, lanes), the zeros and ones.
        coded: which positions count; None: all.

    Returns:
        (4 + lags, positions) in the order of coding, and the zeros and ones there.
    """
    found = [(np.zeros((_PLAIN + len(lags), 0), dtype=np.int32), np.zeros(0, dtype=np.int32))]
    found += feature_blocks(lags, plane, coded)
    return np.concatenate([rows for rows, _ in found], axis=1), np.concatenate([ones for _, ones in found])


def feature_blocks(lags: tuple[int, ...], plane: Ints, coded: Flags | None) -> Iterator[tuple[Ints, Ints]]:
    """`features` of a few steps at a time: a writer knows all of the plane, so whole blocks are computed at once."""
    steps, width = plane.shape
    flags = np.ones((steps, width), dtype=np.bool_) if coded is None else coded
    hits = (plane != 0) & flags
    signs = hits.astype(np.int8) * np.int8(2) - flags.astype(np.int8)
    logs = _logs(steps)
    totals = np.stack([hits.sum(1, dtype=np.int64), flags.sum(1, dtype=np.int64)])
    near = _near_all(lags, totals)
    ones, seen = np.zeros(width, dtype=np.int32), np.zeros(width, dtype=np.int32)
    size = max(1, BLOCK // width)
    for start in range(0, steps, size):
        block = slice(start, min(start + size, steps))
        chosen, hit = flags[block], hits[block]
        before, ones = _running(ones, hit)
        met, seen = _running(seen, chosen)
        own, all_ = before[chosen], met[chosen]
        counts = totals[1, block]
        rows = np.zeros((_PLAIN + len(lags), len(own)), dtype=np.int32)
        rows[0] = ONE
        rows[1] = logs[2 * own] - logs[2 * (all_ - own)]
        rows[2] = np.repeat(near[block], counts)
        rows[3] = _excess_all(hit[chosen], own, all_, counts)
        for row, lag in enumerate(lags, start=_PLAIN):
            lagged = np.zeros(chosen.shape, dtype=np.int8)
            first = max(start, lag)
            lagged[first - start :] = signs[first - lag : max(first, block.stop) - lag]
            rows[row] = ONE * lagged[chosen].astype(np.int32)
        yield rows, hit[chosen].astype(np.int32)


def _running(known: Ints, more: Flags) -> tuple[Ints, Ints]:
    """Sums over the steps before each step, (steps, lanes), and over all of them, (lanes,).

    Args:
        known: (lanes,), the sums before.
        more: (steps, lanes), what each step adds.
    """
    if more.shape[0] > more.shape[1]:
        sums = np.cumsum(more, axis=0, dtype=np.int32) + known
        return sums - more, sums[-1]
    found = np.empty(more.shape, dtype=np.int32)
    for row, added in zip(found, more, strict=True):  # far faster than cumsum along the first axis
        row[:] = known
        known = known + added
    return found, known


def _near_all(lags: tuple[int, ...], totals: NDArray[np.int64]) -> Ints:
    """Feature `near` of every step, from the ones and the positions (2, steps) of each."""
    back = np.zeros_like(totals)
    for lag in lags:
        back[:, lag:] += totals[:, :-lag]
    return ((log2s(2 * back[0] + 1) >> 8) - (log2s(2 * (back[1] - back[0]) + 1) >> 8)).astype(np.int32)


def _excess_all(hit: Flags, own: Ints, all_: Ints, counts: NDArray[np.int64]) -> Ints:
    """Feature `excess` of every position of a block, chunk by chunk of its steps."""
    ends = np.cumsum(counts)
    starts = ends - counts
    both = ((2 * own.astype(np.int64) + 1) << 16) // (2 * all_.astype(np.int64) + 2)
    known, expected = (np.concatenate([[0], np.cumsum(part, dtype=np.int64)]) for part in (hit, both))
    found = np.zeros(len(own), dtype=np.int32)
    within = np.arange(len(own)) - np.repeat(starts, counts)
    chunk = FIRST_CHUNK
    while chunk < counts.max(initial=0):
        at = np.minimum(starts + chunk, ends)
        above = (2 * (known[at] - known[starts]) + 1) << 16
        below = 2 * (expected[at] - expected[starts]) + (1 << 16)
        value = ((log2s(above) >> 8) - (log2s(below) >> 8)).astype(np.int32)
        found = np.where(within >= chunk, np.repeat(value, counts), found)
        chunk *= 4
    return found


def _logs(steps: int) -> Ints:
    """256 log2 of 1, 2, ..., for the counts of so many steps."""
    return (log2s(np.arange(1, 2 * steps + 2)) >> 8).astype(np.int32)


class Matrix:
    """What is known of a matrix before each step.

    Attributes:
        signs: (steps, lanes), the feature `lags` of later steps: 256, -256 or 0 for a one, a zero, nothing coded.
        count: positions that are coded in this step.
        found: zeros and ones of this step, filled by the caller.

    Args:
        shape: steps and lanes.
        coded: (steps, lanes), which positions are coded; None: all.
        lane: weight of the feature `lane`.
    """

    def __init__(self, shape: tuple[int, int], coded: Flags | None, lane: int) -> None:
        steps, width = shape
        self.signs = np.zeros((steps, width), dtype=np.int32)
        self._coded = coded
        self._logs = _logs(steps) * np.int32(lane)
        self._ones, self._seen = np.zeros(width, dtype=np.int32), np.zeros(width, dtype=np.int32)
        self._totals = np.zeros((steps, 2), dtype=np.int64)

    def start(self, step: int) -> Where:
        """Begin a step; returns its lanes."""
        self._step = step
        if self._coded is None:
            self._chosen: Where = slice(0, len(self._ones))
        else:
            self._chosen = self._coded[step].nonzero()[0].astype(np.int32)
        self._own, self._all = self._ones[self._chosen], self._seen[self._chosen]
        self.count = len(self._own)
        self.found = np.empty(self.count, dtype=np.int32)
        self._expected: NDArray[np.int64] | None = None
        return self._chosen

    def lanes(self) -> Ints:
        """Feature `lane` times its weight."""
        logs = self._logs
        if self._coded is None:
            table = logs[0 : 2 * self._step + 1 : 2] - logs[2 * self._step :: -2][: self._step + 1]
            return table[self._own]
        found: Ints = logs[2 * self._own] - logs[2 * (self._all - self._own)]
        return found

    def near(self, lags: tuple[int, ...]) -> int:
        """Feature `near`."""
        back = [self._step - lag for lag in lags if lag <= self._step]
        if not back:
            return 0
        ones, count = self._totals[back].sum(0).tolist()
        return ratio(2 * ones + 1, 2 * (count - ones) + 1)

    def excess(self, start: int) -> int:
        """Feature `excess` for the chunk that begins here."""
        if self._expected is None:
            if self._coded is None and self._step < self.count:
                both = (((2 * np.arange(self._step + 1) + 1) << 16) // (2 * self._step + 2))[self._own]
            else:
                both = ((2 * self._own.astype(np.int64) + 1) << 16) // (2 * self._all.astype(np.int64) + 2)
            self._expected = np.cumsum(both)
        seen = int(np.count_nonzero(self.found[:start]))
        return ratio((2 * seen + 1) << 16, 2 * int(self._expected[start - 1]) + (1 << 16))

    def end(self) -> None:
        """End a step: `found` is known now."""
        if self._coded is None:
            self._ones += self.found
            self._seen += 1
        else:
            self._ones[self._chosen] = self._own + self.found
            self._seen[self._chosen] = self._all + 1
        self.signs[self._step, self._chosen] = self.found * np.int32(2 * ONE) - np.int32(ONE)
        self._totals[self._step] = np.count_nonzero(self.found), self.count


def part(chosen: Where, start: int, stop: int) -> Where:
    """A part of the lanes of a step."""
    return slice(start, stop) if isinstance(chosen, slice) else chosen[start:stop]


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """Start and end of the parts of a step: they end after 64, 256, 1024, ... positions."""
    start, stop = 0, min(FIRST_CHUNK, count)
    while start < count:
        yield start, stop
        start, stop = stop, min(4 * stop, count)


def squash(odds: Ints) -> Chances:
    """The probability with these binary logarithms of the odds (in units of 1/256), a multiple of 2^-24."""
    found: Chances = SQUASH.take(odds + _END, mode="clip")
    return found


def chances(features: Ints, weights: Ints) -> Chances:
    """Probability of a one."""
    return squash((weights @ features) >> 8)


def fit(features: Ints, ones: Ints, start: Ints | None = None) -> tuple[Ints, NDArray[np.float64]]:
    """The weights that make the code of these positions short.

    Args:
        features: (count, positions), at most 2^18 positions.
        ones: (positions,), what is there.
        start: weights near the optimum, if some are known.

    Returns:
        The weights, and for each about the bits that are lost without it (from the curvature at the optimum).
    """
    size = len(features)
    coarse = np.clip(features >> 4, -511, 511).astype(np.float64)
    weights = np.zeros(size, dtype=np.int32)
    if start is not None:
        weights[:] = start
    elif features.shape[1] >= _MANY:
        weights[:], _ = fit(np.ascontiguousarray(features[:, ::_THIN]), ones[::_THIN])
    else:
        weights[1] = ONE
    curvature = np.zeros((size, size))
    for _ in range(_ROUNDS):
        chance = (chances(features, weights) * 65536).astype(np.int64)
        slope = coarse @ (65536 * ones.astype(np.int64) - chance).astype(np.float64)
        spread = ((chance * (65536 - chance)) >> 14).astype(np.float64)
        curvature = (coarse * spread) @ coarse.T
        step = _solve(curvature, 64 / math.log(2) * slope)
        moved = [w + round(ONE * max(-2.0, min(2.0, s))) for w, s in zip(weights.tolist(), step, strict=True)]
        before, weights = weights, np.clip(moved, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int32)
        if np.abs(weights - before).max() <= 1:
            break
    worth = np.diag(curvature) * (weights / ONE) ** 2 * (math.log(2) / 2**27)
    return weights, worth


def _solve(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> list[float]:
    """Gauss's elimination in plain floats, operation by operation, so that it is the same everywhere."""
    size = len(right)
    rows = [[*map(float, matrix[i]), float(right[i])] for i in range(size)]
    for i in range(size):
        rows[i][i] += 1.0 + 1e-4 * rows[i][i]
    for i in range(size):
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, size + 1):
                rows[r][c] -= factor * rows[i][c]
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = rows[i][size]
        for c in range(i + 1, size):
            rest -= rows[i][c] * found[c]
        found[i] = rest / rows[i][i]
    return found


def ratio(above: int, below: int) -> int:
    """256 log2 of a quotient of positive integers."""
    return (log2(above) >> 8) - (log2(below) >> 8)
