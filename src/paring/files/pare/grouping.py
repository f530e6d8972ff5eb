"""How groups are found: the size of groups, scales, offsets and levels that give every entry of a tensor bit for bit.

A filter looks whether neighbours are equal more often than entries far apart. What passes is tried on a few groups: sizes from the
largest to the smallest, and for each three forms (`forms`). What is found is computed again and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paring.files.pare.dynamic import learn_dynamic
from paring.files.pare.forms import Kind, bounds, learn_affine, learn_book, learn_grid
from paring.files.pare.groups import Form, Groups, Rounding, computed, patterns
from paring.files.pare.levels import LARGEST_LEVEL, MOST_VALUES, fits_half
from paring.files.pare.logs import information

Bits = NDArray[Any]
SIZES = (256, 128, 64, 32, 16)
SMALLEST = 256  # entries of a tensor
_FEW, _SAMPLE, _ENTRIES = 6, 48, 1 << 14  # groups, and entries of all
_FILTER = 1 << 14  # entries
_NEAR = 16
_BLOCK = 1 << 15


def find(
    bits: Bits, rounding: Rounding, columns: int, known: Kind | None = None, nested: bool = False
) -> tuple[Groups | None, Kind | None]:
    """The groups of a tensor of unsigned bit patterns; None when it has none.

    Args:
        bits: float32 numbers, or what `rounding` says in two bytes.
        rounding: the type of the numbers.
        columns: entries of a row.
        known: how the piece before this one was made.
        nested: these are scales themselves.

    Returns:
        The groups, and how they are made.
    """
    flat = bits.reshape(-1)
    if flat.size < SMALLEST or not _repeats(flat):
        return None, None
    if rounding == "float32":
        flat, rounding = _narrow(flat)
        if nested and rounding != "float32":
            return None, None  # half of their bits is not worth the search
    if not _ordinary(flat, rounding):
        return None, None
    if known is not None and known.form.rounding == rounding and flat.size % known.form.size == 0:
        found = _all(flat.reshape(-1, known.form.size), known)
        if found is not None:
            return _lowered(found), known
    for size in _sizes(flat.size, columns):
        rows = flat.reshape(-1, size)
        most = min(len(rows), max(2, _ENTRIES // size))
        few, some = (rows[np.linspace(0, len(rows) - 1, min(n, most)).astype(np.int64)] for n in (_FEW, _SAMPLE))
        for learn in _FORMS:
            form = Form(size, rounding)
            kind = learn(some, form) if learn is not learn_affine or learn(few, form) is not None else None
            if kind is not None and (found := _all(rows, kind)) is not None:
                return _lowered(found), kind
    return None, None


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


_FORMS: tuple[Callable[[Bits, Form], Kind | None], ...] = (learn_grid, learn_affine, learn_book, learn_dynamic)


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
        whole = number.astype(np.int32)  # -0.0 is gone
        book = whole.astype(np.float32) if kind.book is None else kind.book[whole]
        made = computed(kind.form, book, scale[:, None], None if offset is None else offset[:, None])
        if not np.array_equal(patterns(made, kind.form.rounding, width), rows[block]):
            return None
        levels[block], scales[block] = whole, scale
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
