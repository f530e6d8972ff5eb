"""How groups are found: the size of groups, scales, offsets and levels that give every entry of a tensor bit for bit.

A filter looks whether neighbours are equal more often than entries far apart. What passes is tried on a few groups: sizes from the
largest to the smallest, and for each three forms (`Grid`, `Affine`, `Book`). All follow from intervals: an entry v with level
c says that its scale lies between (v - h) / c and (v + h) / c, with half a unit h in the last place; scales are taken from
where the intervals of a group meet, the shortest number there is. What is found is computed again and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paring.files.pare.groups import Floats, Form, Groups, Offsets, Rounding, computed, numbers, patterns, rounded
from paring.files.pare.levels import LARGEST_LEVEL, MOST_VALUES, fits_half
from paring.files.pare.logs import information

Bits = NDArray[Any]
Doubles = NDArray[np.float64]
SIZES = (256, 128, 64, 32, 16)
SMALLEST = 256  # entries of a tensor
_FEW, _SAMPLE = 6, 48  # groups
_FILTER = 1 << 14  # entries
_NEAR = 16
_BLOCK = 1 << 15
_MOST_STEPS = 255
_SLACK = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of a number, by which it may be rounded
_BYTES = (127, 128)  # largest levels that are tried where numbers are about as coarse as levels
_PARTS = (0.0, 0.5, -0.5, 0.25, -0.25, 0.75, -0.75, 0.125, -0.125, 0.375, -0.375, 0.625, -0.625, 0.875, -0.875)  # of what the largest entry may have been rounded by, where that matters
_STEPS = (15, 7, 3, 31, 63, 255)
_AROUND = 4  # numbers on each side of a rough scale that are tried
_LARGEST_BOOK = 256
_NORMAL = (  # quantiles of the normal distribution, as QLoRA lists them
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334)
    + (-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
    + (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
)
Part = tuple[Doubles, Floats, Floats | None]  # numbers of levels (groups, size); scales and offsets (groups,)


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


def find(bits: Bits, rounding: Rounding, columns: int) -> Groups | None:
    """The groups of a tensor of unsigned bit patterns; None when it has none.

    Args:
        bits: float32 numbers, or what `rounding` says in two bytes.
        rounding: the type of the numbers.
        columns: entries of a row.
    """
    flat = bits.reshape(-1)
    if flat.size < SMALLEST or not _repeats(flat):
        return None
    if rounding == "float32":
        flat, rounding = _narrow(flat)
    if not _ordinary(flat, rounding):
        return None
    for size in _sizes(flat.size, columns):
        rows = flat.reshape(-1, size)
        few, some = (rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64)] for n in (_FEW, _SAMPLE))
        for learn in _FORMS:
            kind = learn(some, Form(size, rounding)) if learn is learn_book or learn(few, Form(size, rounding)) else None
            if kind is not None and (found := _all(rows, kind)) is not None:
                return _lowered(found)
    return None


def _repeats(flat: Bits) -> bool:
    """Whether entries next to each other have the same size more often than entries far apart."""
    count = min(_FILTER, len(flat)) // _NEAR
    starts = np.linspace(0, len(flat) // _NEAR - 1, count).astype(np.int64)
    near = flat[: len(flat) // _NEAR * _NEAR].reshape(-1, _NEAR)[starts] << np.array(1, dtype=flat.dtype)
    far = np.stack([np.roll(near[:, k], k * (count // _NEAR)) for k in range(_NEAR)], axis=1)

    def equal(rows: Bits) -> int:
        ordered = np.sort(rows, axis=1)
        return int(np.count_nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)))

    met, chance = equal(near), equal(far)
    return met >= 4 and met > 1.3 * chance


def _ordinary(flat: Bits, rounding: Rounding) -> bool:
    """No infinities and no NaN, and no float32 number that some machines flush to zero."""
    size = flat << np.array(1, dtype=flat.dtype)
    if rounding == "float16":
        return bool((size < np.uint16(0xF800)).all())
    one = np.array(1 << (8 * flat.dtype.itemsize - 8), dtype=flat.dtype)
    return bool(((size == 0) | (size >= one)).all() and (size < one * np.array(255, dtype=flat.dtype)).all())


def _narrow(flat: Bits) -> tuple[Bits, Rounding]:
    """The smallest type that float32 numbers fit."""
    if not (flat[: 1 << 12] & 0xFFFF).any() and not (flat & 0xFFFF).any():
        return (flat >> 16).astype(np.uint16), "bfloat16"
    if fits_half(flat):
        return flat.view(np.float32).astype(np.float16).view(np.uint16), "float16"
    return flat, "float32"


def _sizes(count: int, columns: int) -> list[int]:
    """Sizes of groups that are worth a try, the largest first."""
    own = {size for size in range(16, min(columns, 513)) if size % 8 == 0 and columns % size == 0}
    own |= {columns} if columns >= 16 else set()
    return sorted((size for size in own | set(SIZES) if count % size == 0 and count >= 2 * size), reverse=True)


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
        return None if len(missing) else (levels, scales, None)


def _meet(form: Form, values: Doubles, low: Doubles, high: Doubles, number: Doubles) -> tuple[NDArray[np.bool_], Floats]:
    """Which groups have a scale that makes these numbers of levels their entries, and the scales."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = low / number, high / number
        least = np.where(number != 0, np.minimum(*ends), 0).max(1)
        most = np.where(number != 0, np.maximum(*ends), np.inf).min(1)
    fitting = (least <= most) & (np.sign(number) == np.sign(values)).all(1)
    least, most = np.where(fitting, least, 0), np.where(fitting, most, 0)
    scales = short(least, most)
    for other in (None, (least + most) / 2, 0.9 * least + 0.1 * most, 0.1 * least + 0.9 * most):
        if other is not None:
            scales[wrong] = other[wrong].astype(np.float32)
        wrong = np.flatnonzero(fitting)
        wrong = wrong[~_same(computed(form, number[wrong].astype(np.float32), scales[wrong, None], None), values[wrong])]
        if not len(wrong):
            break
    fitting[wrong] = False
    return fitting, scales


def _same(made: Floats, values: Doubles) -> NDArray[np.bool_]:
    """Which groups are equal, zeros with their signs."""
    return ((made == values) & (np.signbit(made) == np.signbit(values))).all(1)


def learn_grid(some: Bits, form: Form) -> Grid | None:
    """How large the largest levels are, the most frequent first."""
    values, low, high = bounds(some, form.rounding)
    top, half = np.abs(values).max(1), (high - low).max(1) / 2
    missing, counts = np.flatnonzero(top), dict[int, int]()
    for largest in range(1, _MOST_STEPS + 1):
        if largest * _SLACK[form.rounding] > 0.25 and largest not in _BYTES:
            continue
        if not len(missing):
            break
        for part in _PARTS if largest * _SLACK[form.rounding] > 0.25 else _PARTS[:1]:
            level = np.rint(values[missing] * (largest / (top + part * half)[missing])[:, None])
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
        for used in range(self.steps, 0 if spread else self.steps - 1, -1):
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
                    fitting = (from_ <= to) & _same(again, values[missing])
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
            if kind.fit(values[near][:8], low[near][:8], high[near][:8], spread=False) is not None:
                if kind.fit(values, low, high) is not None:
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
    if not len(share):
        return None
    slack = 8 * _SLACK[form.rounding]
    cuts = np.flatnonzero(np.diff(share) > slack * np.abs(share[1:]) + 1e-9) + 1
    if len(cuts) + 1 > min(_LARGEST_BOOK, len(share) // 8):
        return None
    book = np.array([part.mean() for part in np.split(share, cuts)])
    normal = np.array(_NORMAL)
    if len(book) <= 16 and (np.abs(book[:, None] - normal).min(1) <= slack * np.abs(book) + 1e-9).all():
        return Book(form, normal.astype(np.float32))
    for _ in range(3):
        levels = np.searchsorted((book[1:] + book[:-1]) / 2, values / top[:, None])
        number = book[levels]
        ends = np.sort(np.stack([low, high]) / np.where(number == 0, np.nan, number), axis=0)
        scale = (np.nanmax(ends[0], axis=1) + np.nanmin(ends[1], axis=1)) / 2
        from_, to = np.full(len(book), -np.inf), np.full(len(book), np.inf)
        np.maximum.at(from_, levels, low / scale[:, None])
        np.minimum.at(to, levels, high / scale[:, None])
        met = from_ <= to
        book[met] = (from_[met] + to[met]) / 2
        book[np.abs(book) < 1e-9] = 0
    return Book(form, book.astype(np.float32))


_FORMS: tuple[Callable[[Bits, Form], Kind | None], ...] = (learn_grid, learn_affine, learn_book)


def _all(rows: Bits, kind: Kind) -> Groups | None:
    """All groups; None when one does not fit."""
    width, size = rows.dtype.itemsize, kind.form.size
    levels = np.empty(rows.shape, dtype=np.int32)
    scales = np.empty(len(rows), dtype=np.float32)
    offsets = np.empty(len(rows), dtype=np.float32) if kind.form.offsets else None
    step = max(1, _BLOCK // size)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        found = kind.fit(*bounds(rows[block], kind.form.rounding))
        if found is None:
            return None
        number, scale, offset = found
        book = number.astype(np.float32) if kind.book is None else kind.book[number.astype(np.int32)]
        made = computed(kind.form, book, scale[:, None], None if offset is None else offset[:, None])
        if not np.array_equal(patterns(made, kind.form.rounding, width), rows[block]):
            return None
        levels[block], scales[block] = number, scale
        if offsets is not None and offset is not None:
            offsets[block] = offset
    if kind.book is not None:
        return Groups(kind.form, kind.book, levels, scales, offsets)
    first, last = int(levels.min()), int(levels.max())
    if last - first + 1 > MOST_VALUES or max(-first, last) > LARGEST_LEVEL:
        return None
    levels -= first
    return Groups(kind.form, np.arange(first, last + 1, dtype=np.float32), levels, scales, offsets)


def _lowered(found: Groups) -> Groups:
    """With an integer offset for each group, if its levels then take fewer bits."""
    if found.form.offsets or found.form.listed:
        return found
    lowest = found.index.min(1, keepdims=True)
    index = found.index - lowest
    counts = [np.bincount(part.reshape(-1)).astype(np.int64) for part in (found.index, index, lowest)]
    as_is, lowered, own = (information(count) for count in counts)
    if lowered + own + 8 * len(counts[2]) + 64 >= 0.995 * as_is:
        return found
    book = np.arange(len(counts[1]), dtype=np.float32)
    offsets = (-found.book[0] - lowest[:, 0]).astype(np.float32)
    return Groups(replace(found.form, offsets="shift"), book, index, found.scales, offsets)
