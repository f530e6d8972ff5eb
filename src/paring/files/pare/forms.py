"""Forms of groups, and how scales, offsets and levels follow from the entries.

All follow from intervals: an entry v with level c says that its scale lies between (v - h) / c and (v + h) / c, with half a unit h
in the last place; scales are taken from where the intervals of a group meet, the shortest number there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paring.files.pare.groups import Floats, Form, Offsets, Rounding, computed, numbers, rounded

Bits = NDArray[Any]
Doubles = NDArray[np.float64]
Part = tuple[Doubles, Floats, Floats | None]  # numbers of levels (groups, size); scales and offsets (groups,)
_FEW = 6  # groups that tell whether a form is out of the question
_MOST_STEPS = 255
_SLACK = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of a number, by which it may be rounded
_BYTES = (127, 128)  # largest levels that are tried where numbers are about as coarse as levels
_PARTS = (
    0.0,
    0.5,
    -0.5,
    0.25,
    -0.25,
    0.75,
    -0.75,
    0.125,
    -0.125,
    0.375,
    -0.375,
    0.625,
    -0.625,
    0.875,
    -0.875,
)  # of what the largest entry may have been rounded by, where that matters
_STEPS = (15, 7, 3, 31, 63, 255)
_FEWER = 15  # steps that a group may use less than others
_AROUND = 4  # numbers on each side of a rough scale that are tried
_LARGEST_BOOK = 256
_ROUNDS = 20
_NARROW = 64  # entries of a group that tell which levels are out of the question
_NORMAL = np.fromstring(  # quantiles of the normal distribution, as QLoRA lists them
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1",
    dtype=np.float64,
    sep=" ",
)


class Kind(Protocol):
    """A form of groups with what a sample told."""

    @property
    def form(self) -> Form:
        """Of the entries."""

    @property
    def book(self) -> Floats | None:
        """The numbers of the levels; None when `fit` gives them themselves."""

    def fit(self, values: Doubles, low: Doubles, high: Doubles) -> Part | None:
        """Levels, scales and offsets of groups (groups, size); None when there are none for some group."""


def bounds(bits: Bits, rounding: Rounding) -> tuple[Doubles, Doubles, Doubles]:
    """Numbers, and between what real numbers are rounded to them."""
    top = np.array(1 << (8 * bits.dtype.itemsize - 1), dtype=bits.dtype)
    size = bits & ~top

    def value(patterns: Bits) -> Doubles:
        return numbers(patterns, rounding).astype(np.float64)

    middle, above = value(size), value(size + np.array(1, dtype=bits.dtype))
    below = np.where(size == 0, -above, value(np.maximum(size, 1) - np.array(1, dtype=bits.dtype)))
    low, high = (middle + below) / 2, (middle + above) / 2
    negative = bits >= top
    return np.where(negative, -middle, middle), np.where(negative, -high, low), np.where(negative, -low, high)


def short(low: Doubles, high: Doubles, ends: bool = False) -> Floats:
    """A number in each interval: a bfloat16 or float16 number where there is one, or the float32 number in the middle.

    Numbers at the ends may be rounded elsewhere and count only with `ends`.
    """
    middle = ((low + high) / 2).astype(np.float32)
    found = middle
    for rounding in ("float16", "bfloat16"):
        near = rounded(middle, rounding)
        inside = (low <= near) & (near <= high) if ends else (low < near) & (near < high)
        found = np.where(inside, near, found)
    return found


@dataclass(frozen=True)
class Grid:
    """v = R(q s): integers times a scale; the largest of a group is one of `largest`."""

    form: Form
    largest: tuple[int, ...]
    book: Floats | None = None

    def fit(self, values: Doubles, low: Doubles, high: Doubles) -> Part | None:
        top = np.abs(values).max(1)
        half, slack = (high - low).max(1) / 2, _SLACK[self.form.rounding]
        levels, scales = np.zeros_like(values), np.zeros(len(values), dtype=np.float32)
        missing = np.flatnonzero(top)
        for largest in self.largest:
            if not len(missing):
                break
            for part in _PARTS if largest * slack > 0.25 else _PARTS[:1]:
                some = values[missing]
                level = np.rint(some * (largest / (top + part * half)[missing])[:, None])
                fitting, scale = _meet(self.form, some, low[missing], high[missing], level)
                right = missing[fitting]
                levels[right], scales[right] = level[fitting], scale[fitting]
                missing = missing[~fitting]
        if len(missing):
            return None
        self._coarsen(values, low, high, levels, scales)
        return levels, scales, None

    def _coarsen(self, values: Doubles, low: Doubles, high: Doubles, levels: Doubles, scales: Floats) -> None:
        """Where all levels of a group have a common divisor, they are divided by it."""
        least = np.where(levels == 0, np.inf, np.abs(levels)).min(1)
        some = np.flatnonzero(np.isfinite(least) & (least > 1))
        divisor = np.gcd.reduce(levels[some].astype(np.int64), axis=1, keepdims=True)
        some, divisor = some[divisor[:, 0] > 1], divisor[divisor[:, 0] > 1]
        level = levels[some] / divisor
        fitting, scale = _meet(self.form, values[some], low[some], high[some], level)
        levels[some[fitting]], scales[some[fitting]] = level[fitting], scale[fitting]


def interval(low: Doubles, high: Doubles, number: Doubles) -> tuple[Doubles, Doubles]:
    """Between what the scales of groups (..., groups, size) lie."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = low / number, high / number
        least = np.where(number != 0, np.minimum(*ends), 0).max(-1)
        most = np.where(number != 0, np.maximum(*ends), np.inf).min(-1)
    return least, most


def _meet(
    form: Form, values: Doubles, low: Doubles, high: Doubles, number: Doubles
) -> tuple[NDArray[np.bool_], Floats]:
    """Which groups have a scale that makes these numbers of levels their entries, and the scales."""
    least, most = interval(low, high, number)
    fitting = (least <= most) & (np.sign(number) == np.sign(values)).all(1)
    least, most = np.where(fitting, least, 0), np.where(fitting, most, 0)
    scales, wrong = short(least, most), np.flatnonzero(fitting)
    for share in (None, 0.5, 0.9, 0.1):
        if share is not None:
            scales[wrong] = (share * least + (1 - share) * most)[wrong].astype(np.float32)
        made = computed(form, number[wrong].astype(np.float32), scales[wrong, None], None)
        wrong = wrong[~same(made, values[wrong])]
        if not len(wrong):
            break
    fitting[wrong] = False
    return fitting, scales


def same(made: Floats, values: Doubles) -> NDArray[np.bool_]:
    """Which groups are equal, zeros with their signs."""
    found: NDArray[np.bool_] = ((made == values) & (np.signbit(made) == np.signbit(values))).all(1)
    return found


def learn_grid(some: Bits, form: Form) -> Grid | None:
    """How large the largest levels are, the most frequent first."""
    values, low, high = bounds(some, form.rounding)
    top, half = np.abs(values).max(1), (high - low).max(1) / 2
    coarse = _SLACK[form.rounding]
    tries = [(n, part) for n in range(1, _MOST_STEPS + 1) for part in (_PARTS if n * coarse > 0.25 else _PARTS[:1])]
    tries = [(n, part) for n, part in tries if n * coarse <= 0.25 or n in _BYTES]
    few = np.flatnonzero(top)[:_FEW]
    scale = np.array([(top[few] + part * half[few]) / n for n, part in tries])[:, :, None]
    every = slice(None, None, max(1, form.size // _NARROW))
    part = values[few, every]
    number = np.rint(part / scale)
    least, most = interval(low[few, every], high[few, every], number)
    if not ((least <= most) & (np.sign(number) == np.sign(part)).all(-1)).any(0).all():
        return None
    missing, counts = np.flatnonzero(top), dict[int, int]()
    for largest, off in tries:
        if not len(missing):
            break
        level = np.rint(values[missing] * (largest / (top + off * half)[missing])[:, None])
        fitting, _ = _meet(form, values[missing], low[missing], high[missing], level)
        if fitting.any():
            counts[largest] = counts.get(largest, 0) + int(fitting.sum())
        missing = missing[~fitting]
    if len(missing) or not counts:
        return None
    order = sorted(counts, key=lambda one: (-counts[one], one))
    return Grid(form, (*order, *(n for n in range(1, min(2 * max(order) + 1, _MOST_STEPS) + 1) if n not in counts)))


@dataclass(frozen=True)
class Affine:
    """v = R(R(c s) + z), or R(c s + z): c from `first` to `first` + `steps`."""

    form: Form
    first: int
    steps: int
    book: Floats | None = None

    @property
    def _unit(self) -> Rounding:
        """Of what type scales are tried."""
        return "float16" if self.form.offsets == "fused" else self.form.rounding

    @property
    def _tries(self) -> int:
        """How many on each side of a rough scale."""
        return 3 * _AROUND if self.form.offsets == "fused" else _AROUND

    def fit(self, values: Doubles, low: Doubles, high: Doubles, spread: bool = True) -> Part | None:
        """As in `Kind`; without `spread` every group has to use both the first and the last level."""
        least = values.min(1)
        span = values.max(1) - least
        levels = np.full_like(values, self.first if self.first <= 0 <= self.first + self.steps else 0)
        scales, offsets = np.zeros(len(values), dtype=np.float32), least.astype(np.float32)
        missing = np.flatnonzero(span)
        for used in range(self.steps, max(0, self.steps - _FEWER) if spread else self.steps - 1, -1):
            if not len(missing):
                break
            for moved in range(self.steps - used + 1):
                for place, ends in product(range(2 * self._tries + 3), (False, True)):
                    if not len(missing):
                        break
                    scale = _around((span[missing] / used).astype(np.float32), self._unit, place)
                    level = np.rint((values[missing] - least[missing, None]) * (used / span[missing])[:, None])
                    number = (level + (self.first + moved)).astype(np.float32)
                    made = number * scale[:, None]
                    if self.form.offsets == "add":
                        made = rounded(made, self.form.rounding)
                    from_, to = (low[missing] - made).max(1), (high[missing] - made).min(1)
                    offset = short(np.where(from_ <= to, from_, 0), np.where(from_ <= to, to, 0), ends)
                    again = computed(self.form, number, scale[:, None], offset[:, None])
                    fitting = (from_ <= to) & same(again, values[missing])
                    right = missing[fitting]
                    levels[right], scales[right], offsets[right] = number[fitting], scale[fitting], offset[fitting]
                    missing = missing[~fitting]
        return None if len(missing) else (levels, scales, offsets)


def _around(scale: Floats, rounding: Rounding, place: int) -> Floats:
    """The number of a type in this place around a scale, the nearest first; of float32 after float16 and bfloat16."""
    if rounding == "float32":
        if place < 2:
            return rounded(scale, ("float16", "bfloat16")[place])
        place, unit = place - 2, 1
    else:
        scale, unit = rounded(scale, rounding), 1 << (16 if rounding == "bfloat16" else 13)
    away = ((place + 1) // 2) * (unit if place % 2 else -unit)
    return (scale.view(np.int32) + np.int32(away)).view(np.float32)


def learn_affine(some: Bits, form: Form) -> Affine | None:
    """How many steps there are between the levels, and where they begin."""
    ways: tuple[Offsets, ...] = ("add",) if form.rounding == "float32" else ("add", "fused")
    values, low, high = bounds(some, form.rounding)
    least = values.min(1, keepdims=True)
    span = values.max(1, keepdims=True) - least
    live = span[:, 0] > 0
    values, low, high, least, span = values[live], low[live], high[live], least[live], span[live]
    if not len(values):
        return None
    slack = (high - low) + (high - low).max(1, keepdims=True)
    for steps in _STEPS:
        part = (values - least) * (steps / span)
        allowed = 2 * slack * (steps / span) + 1e-6
        near = (np.abs(part - np.rint(part)) <= allowed).all(1) & (allowed < 0.35).all(1)
        if 2 * near.sum() < len(near):
            continue
        for first, offsets in product((-(steps + 1) // 2, 0), ways):
            kind = Affine(replace(form, offsets=offsets), first, steps)
            first_ones = kind.fit(values[near][:8], low[near][:8], high[near][:8], spread=False)
            if first_ones is not None and kind.fit(values, low, high) is not None:
                return kind
    return None


@dataclass(frozen=True)
class Book:
    """v = R(c s) with c of a list, of which the largest is 1 or -1."""

    form: Form
    book: Floats

    def fit(self, values: Doubles, low: Doubles, high: Doubles) -> Part | None:
        book = self.book.astype(np.float64)
        top = np.abs(values).max(1)
        share = values / np.where(top > 0, top, 1)[:, None]
        levels = np.searchsorted((book[1:] + book[:-1]) / 2, share)
        number = book[levels]
        fitting, scales = _meet(self.form, values, low, high, number)
        return (levels.astype(np.float64), scales, None) if bool((fitting | (top == 0)).all()) else None


def learn_book(some: Bits, form: Form) -> Book | None:
    """The list: what entries are of the largest of their group, as precisely as all of them together say."""
    form = replace(form, listed=True)
    values, low, high = bounds(some, form.rounding)
    top = np.abs(values).max(1)
    values, low, high, top = values[top > 0], low[top > 0], high[top > 0], top[top > 0]
    share = np.sort((values / top[:, None]).reshape(-1))
    if not len(share) or share[0] >= 0:
        return None
    slack = 8 * _SLACK[form.rounding]
    cuts = np.flatnonzero(np.diff(share) > slack * np.abs(share[1:]) + 1e-9) + 1
    if len(cuts) + 1 > min(_LARGEST_BOOK, len(share) // 8):
        return None
    book = np.array([part.mean() for part in np.split(share, cuts)])
    listed: list[Floats] = []
    if len(book) <= 16 and (np.abs(book[:, None] - _NORMAL).min(1) <= slack * np.abs(book) + 1e-9).all():
        listed.append(_NORMAL.astype(np.float32))
    refined = _refined(book, values, low, high).astype(np.float32)
    listed += [rounded(refined, form.rounding), refined]
    for kept in listed:
        kind = Book(form, kept)
        if (np.diff(kept) > 0).all() and kind.fit(values, low, high) is not None:
            return kind
    return None


def _refined(book: Doubles, values: Doubles, low: Doubles, high: Doubles) -> Doubles:
    """Scales from the list, and the list from the scales, in turn."""
    book = book.copy()
    levels = np.searchsorted((book[1:] + book[:-1]) / 2, values / np.abs(values).max(1, keepdims=True))
    for _ in range(_ROUNDS):
        least, most = interval(low, high, book[levels])
        scale = (least + most) / 2
        if not np.isfinite(scale).all() or not scale.all():
            break
        from_, to = np.full(len(book), -np.inf), np.full(len(book), np.inf)
        np.maximum.at(from_, levels, low / scale[:, None])
        np.minimum.at(to, levels, high / scale[:, None])
        met = np.isfinite(from_) & np.isfinite(to)
        book[met] = (from_[met] + to[met]) / 2
        book[np.abs(book) < 1e-9] = 0
    return book
