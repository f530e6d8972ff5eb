"""Which values the entries of a tensor take, and which of them each entry takes.

* table: the different bit patterns, listed. Zero is a value like any other.
* grid: consecutive integers q times one float32 step: the entry is q * step, rounded to float32 (and then to float16
  when `half` says so).
* groups: consecutive integers, or listed numbers, times a step for every so many entries, see `groups`.
* rows: the same with a step for every row, so that a tensor of ±s_row has the two levels -1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import varint
from paring.files.pare.entropy import Symbols
from paring.files.pare.error import PareError
from paring.files.pare.logs import information

Bits = NDArray[Any]
Kind = Literal["table", "grid", "rows", "groups"]
MOST_VALUES = 4096
LARGEST_LEVEL = 2047
_SAMPLE = 1 << 16
_SMALL = 1 << 14  # entries of a tensor for which a grid is always looked for
_PROBE = 4096
_UNITS = (1, 2, 3, 4, 5, 6, 7, 8)
_CHOICES = 4
_HIGHEST = 129  # no exponent of a float32 is higher
_WIDEST_ROW = 24  # binary orders of magnitude between the entries of a row


@dataclass(frozen=True)
class Levels:
    """The values of a tensor and the index of every entry.

    Attributes:
        kind: see the module's docstring.
        size: number of values.
        half: values (of a table) or entries (of a grid) are float16 numbers; the entries are float32.
        index: (entries,) int32.
        side: what a reader needs to know, as bytes.
        upper: index of the first value of the second set in `mixed` (values of the other sign).
        coded: bits in the code, before the index, that the values take.
    """

    kind: Kind
    size: int
    half: bool
    index: Symbols
    side: bytes
    upper: int
    coded: int = 0

    def bits(self) -> int:
        """About what all of it takes."""
        counts = np.bincount(self.index, minlength=self.size).astype(np.int64)
        return information(counts) + _overhead(self) + self.coded


def find(bits: Bits) -> Levels | None:
    """The levels of a tensor of unsigned bit patterns; None when it takes too many values."""
    table = _table(bits.reshape(-1))
    few = table is not None and table.size <= 32
    if bits.dtype == np.uint32 and not (few and bits.size > _SMALL) and bits.size > 1:
        floats = bits.view(np.float32)
        rows = floats.reshape(len(floats), -1) if floats.ndim > 1 and floats.size else None
        found = _grid(floats.reshape(1, -1), "grid") if table is not None or _plausible(floats.reshape(-1)) else None
        if found is None and rows is not None and rows.shape[1] > 1 and _plausible(rows[0]):
            found = _grid(rows, "rows")
        if found is not None and (table is None or _overhead(found) < _overhead(table)):
            return found
    return table


class Values:
    """The values of a tensor, as a reader finds them.

    Args:
        kind, size, half: as in `Levels`.
        dtype: unsigned integers of the tensor's item size.
        rows: of the tensor.
        side: the section's side information.

    Raises:
        PareError: the file is damaged.
    """

    def __init__(self, kind: Kind, size: int, half: bool, dtype: np.dtype[Any], rows: int, side: varint.Reader) -> None:
        self._steps: NDArray[np.float32] | None = None
        self._half = half
        if kind == "table":
            if half:
                self._table: Bits = np.frombuffer(side.take(2 * size), dtype="<f2").astype(np.float32).view(np.uint32)
            else:
                stored = np.frombuffer(side.take(size * dtype.itemsize), dtype=dtype.newbyteorder("<"))
                self._table = stored.astype(dtype)
            return
        self._table = consecutive(side, size)
        steps = np.frombuffer(side.take(4 * (rows if kind == "rows" else 1)), dtype="<f4")
        self._steps = steps.astype(np.float32)[:, None]

    def of(self, index: Symbols) -> Bits:
        """The bit patterns of the entries (rows, columns) with these indices."""
        found = self._table[index]
        return found if self._steps is None else _entries(found, self._steps, self._half).view(np.uint32)


def consecutive(side: varint.Reader, size: int) -> NDArray[np.float32]:
    """So many integers, of which the side information says the first.

    Raises:
        PareError: they are too large.
    """
    first = varint.signed(side.number())
    if max(abs(first), abs(first + size)) > LARGEST_LEVEL + 1:
        raise PareError("the levels of a grid make no sense")
    return np.arange(first, first + size, dtype=np.float32)


def fits_half(patterns: Bits) -> bool:
    """Whether float32 numbers are float16 numbers, bit for bit."""
    parts = (patterns.reshape(-1)[:_PROBE], patterns)  # most that do not fit show it at once
    return all(np.array_equal(_halved(part.view(np.float32)).view(np.uint32), part) for part in parts)


def distinct(flat: Bits) -> tuple[Bits, NDArray[np.int64]]:
    """The different integers, in order, and how often each occurs; by sorting, as hashes of random numbers take ten times as long."""
    order = np.sort(flat)
    starts = np.flatnonzero(np.concatenate([[True], order[1:] != order[:-1]])) if len(order) else np.zeros(0, np.int64)
    return order[starts], np.diff(starts, append=len(order))


def _table(flat: Bits) -> Levels | None:
    """The different values, when there are few."""
    if len(flat) < 2:
        return None
    found, _ = distinct(flat[:_SAMPLE])
    if len(found) > MOST_VALUES or (len(flat) >= _SAMPLE and 2 * len(found) > _SAMPLE):
        return None
    index = _lookup(found, flat)
    if index is None:
        for part in np.array_split(flat, -(-len(flat) // _SAMPLE)):
            found, _ = distinct(np.concatenate([found, part]))
            if len(found) > MOST_VALUES:
                return None
        index = _lookup(found, flat)
    if index is None or len(found) * 2 > len(flat):
        return None
    others = len(flat) - int(np.bincount(index).max())
    if len(found) > 64 and len(found) * 2 > others:
        return None  # hardly a value comes twice, but zero
    half = found.dtype == np.uint32 and fits_half(found)
    stored = found.view(np.float32).astype("<f2") if half else found.astype(found.dtype.newbyteorder("<"))
    top = found >> np.array(8 * found.dtype.itemsize - 1, dtype=found.dtype)
    return Levels("table", len(found), half, index, stored.tobytes(), int(np.searchsorted(top, 1)))


def _lookup(found: Bits, flat: Bits) -> Symbols | None:
    """The place of every entry in a sorted table; None when one is missing."""
    index = np.empty(len(flat), dtype=np.int32)
    for start in range(0, len(flat), 1 << 18):
        part = flat[start : start + (1 << 18)]
        place = np.searchsorted(found, part)
        np.minimum(place, len(found) - 1, out=place)
        if not np.array_equal(found[place], part):
            return None
        index[start : start + len(part)] = place
    return index


def _overhead(found: Levels) -> int:
    """Bits that the values take, and that it takes to learn how frequent they are."""
    return 8 * len(found.side) + 4 * found.size


def _plausible(row: NDArray[np.float32]) -> bool:
    """Whether a row repeats itself, or is short."""
    return len(row) <= _SMALL or 2 * len(distinct(row[:_SMALL].view(np.uint32))[0]) <= _SMALL


def _grid(rows: NDArray[np.float32], kind: Kind) -> Levels | None:
    """Steps and integers that give the entries exactly, if there are such."""
    few = rows[:4, :_PROBE]
    if not _ordinary(few):
        return None
    halves = fits_half(rows.view(np.uint32))
    ways = ((False, _steps), (True, _steps)) if halves else ((False, _steps), (False, _divisors))
    for half, steps_of in ways:
        if few.size < rows.size and (steps_of(few[:1], half) is None or steps_of(few, half) is None):
            continue
        steps = steps_of(rows, half) if _ordinary(rows) else None
        if steps is None:
            continue
        levels = np.rint(rows.astype(np.float64) / steps[:, None]).astype(np.int32)
        first, last = int(levels.min()), int(levels.max())
        if last - first + 1 > min(MOST_VALUES, 4 * rows.size):
            return None
        side = varint.put([varint.unsigned(first)]) + steps.astype("<f4").tobytes()
        upper = max(0, min(-first, last - first + 1))
        return Levels(kind, last - first + 1, half, (levels - first).reshape(-1), side, upper)
    return None


def _ordinary(rows: NDArray[np.float32]) -> bool:
    """No infinities, no NaN, no -0.0, and no denormal numbers, since such products are not the same where these are flushed."""
    patterns = rows.view(np.uint32)
    size = patterns << 1
    denormal = ((size > 0) & (size < 1 << 24)).any()
    return bool(np.isfinite(rows).all() and not denormal and not (patterns == 1 << 31).any())


def _steps(rows: NDArray[np.float32], half: bool) -> NDArray[np.float32] | None:
    """A step for every row, of which its entries are multiples; 1 for a row of zeros."""
    steps = np.ones(len(rows), dtype=np.float32)
    missing = np.flatnonzero(rows.any(axis=1))
    for unit in _UNITS:
        for choice in range(_CHOICES):
            if not len(missing):
                return steps
            left = rows[missing]
            step = _candidate(np.abs(left), unit, choice, half)
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                levels = np.rint(left.astype(np.float64) / step[:, None])
                right = (np.abs(levels) <= LARGEST_LEVEL).all(1) & np.isfinite(step)
                right &= (_entries(np.where(right[:, None], levels, 0), step[:, None], half) == left).all(1)
            steps[missing[right]] = step[right]
            missing = missing[~right]
    return None if len(missing) else steps


def _divisors(rows: NDArray[np.float32], half: bool) -> NDArray[np.float32] | None:
    """The greatest step for every row of which its entries are multiples exactly; 1 for a row of zeros."""
    mantissas, exponents = np.frexp(rows.astype(np.float64))
    present, some = rows != 0, rows.any(axis=1)
    lowest = np.where(present, exponents, _HIGHEST).min(axis=1, keepdims=True)
    shift = np.where(present, exponents - lowest, 0)
    if int(shift.max()) > _WIDEST_ROW:
        return None
    whole = (mantissas * 2.0**24).astype(np.int64) << shift
    divisor = np.maximum(np.gcd.reduce(whole, axis=1, keepdims=True), 1)
    whole //= divisor
    if int(np.abs(whole).max()) > LARGEST_LEVEL:
        return None
    steps = np.where(some, np.ldexp(divisor.astype(np.float64), lowest - 24)[:, 0], 1.0).astype(np.float32)
    return steps if bool((_entries(whole, steps[:, None], half) == rows).all()) else None


def _candidate(size: NDArray[np.float32], unit: int, choice: int, half: bool) -> NDArray[np.float32]:
    """A step for every row, of which the smallest entry may be `unit`: from the smallest, or the largest, or next to it."""
    rough = np.where(size > 0, size, np.float32(np.inf)).min(1).astype(np.float64) / unit
    largest = size.max(1).astype(np.float64)
    found = (rough if choice == 0 else largest / np.rint(largest / rough)).astype(np.float32)
    if choice > 1:
        found = np.nextafter(found, np.float32(np.inf if choice == 2 else 0))
    return _halved(found) if half else found


def _entries(levels: NDArray[Any], steps: NDArray[np.float32], half: bool) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        made = levels.astype(np.float32) * steps
    return _halved(made) if half else made


def _halved(floats: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return floats.astype(np.float16).astype(np.float32)
