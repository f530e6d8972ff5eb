"""One tensor as bytes: which code is the shortest, and how it is written and read.

A tensor is seen as the bit patterns of its entries (unsigned integers), so nothing is rounded and NaNs and signed zeros
come back as they were.

* raw, planes: the bytes themselves, or coded byte plane by byte plane (`planes`).
* table: `levels` and the index of every entry, whose rows or columns may fall into classes (`classes`).
* mixed: `levels` and the index of every entry under a mixture of contexts (`mixed`): smaller for what was pruned.
* sparse: which entries are zero by `mixed`, the others by `planes`: pruned floats that were not quantised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import classes, forms, grouping, groups, levels, mixed, planes, varint
from paring.files.pare.code import DEEPEST, Code, Grouped, Kind
from paring.files.pare.entropy import Decoder, Encoder, Symbols
from paring.files.pare.error import PareError
from paring.files.pare.groups import Groups
from paring.files.pare.levels import MOST_VALUES, Levels
from paring.files.pare.logs import information

Bits = NDArray[Any]
_SMALLEST_MIXED = 256
_GAIN = 0.995
_CLOSE = 1.01  # times the length of an index into a table, up to which planes are taken for their speed
_LEAST_ZEROS = 0.1
_FEW = 256
_MANY = 1 << 16
_SAMPLE = 1 << 15  # entries that tell whether planes are the shorter code


class Memory:
    """What the pieces of one large tensor share: plan and groups of the first, so that they are found once; and the file's pace."""

    def __init__(self, pace: mixed.Pace | None = None) -> None:
        self.plans: dict[tuple[int, int], mixed.Plan | None] = {}
        self.groups: forms.Kind | None = None
        self.pace = mixed.Pace() if pace is None else pace


def write(
    bits: Bits,
    encoder: Encoder,
    strides: tuple[int, ...] = (),
    memory: Memory | None = None,
    numbers: groups.Rounding | None = None,
    deep: int = 0,
) -> tuple[Code, bytes]:
    """Code a tensor of unsigned integers.

    Args:
        bits: the bit patterns, any shape.
        encoder: takes the code.
        strides: distances along a row that may matter, such as the sizes of kernels.
        memory: of the tensor that this is a piece of.
        numbers: what the bit patterns stand for, if groups with scales are to be looked for.
        deep: how many tensors this one tells the scales of.

    Returns:
        How it was written, and the side information that goes uncoded.
    """
    found, grouped = _found(bits, numbers if deep < DEEPEST else None, memory or Memory(), deep)
    if found is None:
        return _write_many(bits, encoder, strides, memory)
    matrix = found.index.reshape(_matrix(bits.shape))
    parted = classes.partition(matrix, found.size)
    common, ordered = _ordered(found)
    below = found.upper - (common < found.upper)
    frequent = found.size <= _FEW or np.count_nonzero(found.index == common) > _LEAST_ZEROS * bits.size
    plan = _plan(ordered[matrix], found.size, below, strides, memory) if frequent else None
    needed = min(parted.bits, math.inf if plan is None else plan.bits) + 8 * len(found.side) + found.coded
    if (found.size > _FEW or grouped is not None) and planes.length(_flat(bits)) < needed:
        return _write_many(bits, encoder, strides, memory)
    told = None if grouped is None else _write_scales(grouped, encoder, deep)[0]
    if plan is not None and plan.bits < _GAIN * parted.bits - 16 and _paced(plan, matrix.shape, memory):
        side = found.side + varint.put([common, below]) + mixed.write(plan, ordered[matrix], found.size, encoder)
        return Code("mixed", found.kind, found.size, found.half, axis=plan.axis, groups=told), side
    static, stored = classes.write(parted, matrix, found.size, encoder)
    axis = parted.axis if parted.count > 1 else 0
    code = Code("table", found.kind, found.size, found.half, static, axis, parted.count, groups=told)
    return code, found.side + stored


def read(code: Code, shape: tuple[int, ...], dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder) -> Bits:
    """The inverse of `write`.

    Args:
        code: how the tensor was written.
        shape: of the tensor.
        dtype: unsigned integers of the tensor's item size.
        side: the section's side information.
        decoder: the section's code.

    Raises:
        PareError: the file is damaged.
    """
    size = _matrix(shape)
    if not math.prod(shape) and code.kind != "raw":
        raise PareError("a tensor without entries is coded as if it had some")
    if code.kind in ("raw", "planes"):
        return _read_planes(code, math.prod(shape), dtype, side, decoder).reshape(shape)
    if code.kind == "sparse":
        present = mixed.read(size, code.axis, 2, 1, side, decoder).reshape(shape) > 0
        out = np.zeros(shape, dtype=dtype)
        out[present] = _read_planes(code, int(present.sum()), dtype, side, decoder)
        return out
    found: levels.Values | _Scaled
    if code.groups is not None:
        found = _Scaled(code.groups, code.values, math.prod(shape), dtype, side, decoder)
    else:
        found = levels.Values(code.levels, code.values, code.half, dtype, size[0], side)
    if code.kind == "mixed":
        common, below = side.number(), side.number()
        if common >= code.values or below >= code.values:
            raise PareError("a mixed code names a value that is not there")
        symbols = mixed.read(size, code.axis, code.values, below, side, decoder)
        index = np.array([common, *(n for n in range(code.values) if n != common)])[symbols]
    else:
        index = classes.read(size, code.axis, code.classes, code.values, code.static, side, decoder)
    return np.ascontiguousarray(found.of(index)).reshape(shape)


def _found(
    bits: Bits, numbers: groups.Rounding | None, memory: Memory, deep: int
) -> tuple[Levels | None, Groups | None]:
    """The levels of a tensor, and its groups if these are its levels."""
    never = (bits.itemsize == 2 or bits.size >= _MANY) and _never_quantised(bits)
    found = levels.find(bits) if bits.itemsize != 2 and not never else None
    if numbers is not None and (found is None or (found.kind == "table" and found.size > _FEW)):
        grouped, memory.groups = grouping.find(bits, numbers, _matrix(bits.shape)[1], memory.groups, deep > 0)
        if grouped is not None:
            own = _leveled(grouped, deep)
            if found is None or own.bits() < found.bits():
                return own, grouped
    if bits.itemsize == 2 and not never:
        found = levels.find(bits)
    return found, None


def _leveled(found: Groups, deep: int) -> Levels:
    """Groups as levels; what their scales take is counted."""
    _, side = _write_scales(found, coder := Encoder(), deep)
    size, first = len(found.book), int(found.book[0])
    upper = 0 if found.form.listed else max(0, min(-first, size))
    index = found.index.reshape(-1)
    return Levels("groups", size, False, index, side, upper, coded=8 * len(coder.bytes()))


def _write_scales(found: Groups, encoder: Encoder, deep: int) -> tuple[Grouped, bytes]:
    """Write the numbers of the levels, scales and offsets."""
    listed, first = found.form.listed, int(found.book[0])
    side = found.book.astype("<f4").tobytes() if listed else varint.put([varint.unsigned(first)])
    codes = []
    for values in (found.scales, found.offsets):
        if values is not None:
            code, own = write(values.view(np.uint32)[None], encoder, numbers="float32", deep=deep + 1)
            codes.append(code)
            side += own
    return Grouped(found.form, *codes), side


class _Scaled:
    """The values of a tensor in groups, as a reader finds them; the same as `levels.Values`."""

    def __init__(
        self, told: Grouped, size: int, count: int, dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder
    ) -> None:
        self._form, self._width = told.form, dtype.itemsize
        if count % told.form.size:
            raise PareError(f"{count} entries are no groups of {told.form.size}")
        if told.form.listed:
            self._book = np.frombuffer(side.take(4 * size), dtype="<f4").astype(np.float32)
        else:
            self._book = levels.consecutive(side, size)
        shape, bits = (1, count // told.form.size), np.dtype(np.uint32)
        self._scales = read(told.scales, shape, bits, side, decoder).view(np.float32)[0]
        self._shifts = None
        if told.shifts is not None:
            self._shifts = read(told.shifts, shape, bits, side, decoder).view(np.float32)[0]

    def of(self, index: Symbols) -> Bits:
        """The bit patterns of the entries with these indices."""
        return groups.entries(self._form, self._book, index, self._scales, self._shifts, self._width)


def _never_quantised(bits: Bits) -> bool:
    """Whether byte planes are as short as the index into a table can be: 16-bit numbers, maybe in 32, that nobody rounded."""
    sample = bits.reshape(-1)[:: -(-bits.size // _SAMPLE) or 1]
    _, counts = levels.distinct(sample)
    zeros = np.count_nonzero(sample == 0)
    if not _FEW < len(counts) <= MOST_VALUES or zeros > _LEAST_ZEROS * len(sample):
        return False
    # what a sample takes, and about what it lacks of the entropy of all (Miller's correction, 0.72 bits a value)
    index = (information(counts) + 0.72 * len(counts)) * bits.size / len(sample)
    table = (
        (4 + 8 * bits.itemsize) * len(counts) if bits.itemsize == 2 else 0
    )  # others may be on a grid without a table
    return planes.length(_flat(bits)) <= _CLOSE * index + table


def _flat(bits: Bits) -> Bits:
    """The entries as planes see them: as float16 numbers, if they are such."""
    flat = bits.reshape(-1)
    if bits.dtype == np.uint32 and levels.fits_half(bits):
        flat = flat.view(np.float32).astype(np.float16).view(np.uint16)
    return flat


def _ordered(found: Levels) -> tuple[int, Symbols]:
    """The most frequent value, and the symbol of every index: 0 for that one, the others in order."""
    common = int(np.bincount(found.index, minlength=found.size).argmax())
    order = np.arange(found.size, dtype=np.int32)
    order[:common] += 1
    order[common] = 0
    return common, order


def _plan(
    symbols: Symbols, size: int, below: int, strides: tuple[int, ...], memory: Memory | None
) -> mixed.Plan | None:
    """The plan of a matrix, or that of the piece before it."""
    if symbols.size < _SMALLEST_MIXED or size < 2:
        return None
    key = (size, below)
    if memory is not None and key in memory.plans:
        return memory.plans[key]
    plan = mixed.plan(symbols, size, below, strides)
    if memory is not None:
        memory.plans[key] = plan
    return plan


def steps(code: Code, shape: tuple[int, ...]) -> int:
    """Steps of the mixed code of a tensor; 0 for other codes."""
    return _matrix(shape)[code.axis] if code.kind in ("mixed", "sparse") else 0


def _paced(plan: mixed.Plan, shape: tuple[int, ...], memory: Memory | None) -> bool:
    """Whether this piece, and the file, may have the steps of this plan (of another piece, maybe); counts them if so."""
    number = shape[plan.axis]
    allowed = mixed.allowed(number, math.prod(shape)) and (memory is None or memory.pace.allows(number))
    if memory is not None and allowed:
        memory.pace.steps += number
    return allowed


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


def _write_many(bits: Bits, encoder: Encoder, strides: tuple[int, ...], memory: Memory | None) -> tuple[Code, bytes]:
    """A tensor of many values, with its zeros apart when there are many."""
    flat, plan = _flat(bits), None
    half = flat.dtype != bits.dtype
    present = (bits != 0).reshape(_matrix(bits.shape)).astype(np.int32)
    if present.sum() <= (1 - _LEAST_ZEROS) * bits.size:
        plan = _plan(present, 2, 1, strides, memory)
        if plan is not None and not _paced(plan, present.shape, memory):
            plan = None
    side = b""
    if plan is not None:
        side = mixed.write(plan, present, 2, encoder)
        flat = flat[flat != 0]
    made, rest = planes.write(flat, encoder)
    kind: Kind = "sparse" if plan is not None else "planes" if made.coders else "raw"
    axis = 0 if plan is None else plan.axis
    return Code(kind, half=half, axis=axis, planes=made.coders, turned=made.turned, moved=made.moved), side + rest


def _read_planes(code: Code, count: int, dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder) -> Bits:
    flat = planes.read(code.layout, count, np.dtype(np.uint16) if code.half else dtype, side, decoder)
    return flat.view(np.float16).astype(np.float32).view(np.uint32) if code.half else flat
