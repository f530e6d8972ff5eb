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
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import classes, levels, mixed, planes, varint
from paring.files.pare.classes import CLASSES
from paring.files.pare.entropy import Decoder, Encoder, Symbols
from paring.files.pare.error import PareError
from paring.files.pare.levels import MOST_VALUES, Levels
from paring.files.pare.logs import information
from paring.files.pare.planes import Layout

Bits = NDArray[Any]
Kind = Literal["raw", "planes", "sparse", "table", "mixed"]
_SMALLEST_MIXED = 256
_GAIN = 0.995
_LEAST_ZEROS = 0.1
_FEW = 256
_SAMPLE = 1 << 15  # entries that tell whether planes are the shorter code


@dataclass(frozen=True)
class Code:
    """How one tensor is written.

    Attributes:
        kind: see the module's docstring.
        levels: how the values are given: "table", "grid" or "rows".
        values: number of different values.
        half: values are stored as float16, the entries are float32.
        static: the frequencies are stored; otherwise they adapt.
        axis: rows (0) or columns (1) fall into classes, or are the steps of the mixed code.
        classes: number of classes.
        planes: how the byte planes are coded, lowest byte first (`planes.Layout`).
        turned, moved: as in `planes.Layout`.
    """

    kind: Kind
    levels: levels.Kind = "table"
    values: int = 0
    half: bool = False
    static: bool = False
    axis: int = 0
    classes: int = 1
    planes: tuple[int, ...] = ()
    turned: bool = False
    moved: int = 0

    @property
    def layout(self) -> Layout:
        """How the entries are taken apart."""
        return Layout(self.planes, self.turned, self.moved)

    def plain(self) -> dict[str, Any]:
        """As JSON; what has its default is left out."""
        default = asdict(Code(self.kind))
        found = {"kind": self.kind} | {k: v for k, v in asdict(self).items() if v != default[k]}
        return found | ({"planes": list(self.planes)} if self.planes else {})

    @classmethod
    def read(cls, given: Any, itemsize: int) -> Code:
        """From JSON.

        Raises:
            PareError: the description makes no sense.
        """
        known = {"kind": str, "levels": str, "values": int, "half": bool, "static": bool, "axis": int, "classes": int}
        types = known | {"planes": list, "turned": bool, "moved": int}
        if not isinstance(given, dict) or any(type(v) is not types.get(k) for k, v in given.items()):
            raise PareError(f"the code of a tensor cannot be read: {str(given)[:100]}")
        listed = tuple(int(p) if type(p) is bool else p for p in given.get("planes", ()))  # true and false in version 1
        found = cls(**{**given, "planes": listed})
        width = 2 if found.half else itemsize
        valued = (
            1 <= found.values <= MOST_VALUES
            and found.axis in (0, 1)
            and (found.levels == "table" or (found.levels in ("grid", "rows") and itemsize == 4))
            and found.layout == Layout()
        )
        apart = found.layout.fits(width)
        bare = cls(found.kind, half=found.half, planes=found.planes, turned=found.turned, moved=found.moved)
        right = {
            "raw": found == cls("raw", half=found.half),
            "planes": apart and bool(found.planes) and found == bare,
            "sparse": apart and found.axis in (0, 1) and found == replace(bare, axis=found.axis),
            "table": valued and 1 <= found.classes <= max(CLASSES),
            "mixed": valued and found.values > 1 and found.classes == 1 and not found.static,
        }
        if not right.get(found.kind, False) or (found.half and itemsize != 4):
            raise PareError(f"the code of a tensor makes no sense: {str(given)[:100]}")
        return found


class Memory:
    """What the pieces of one large tensor share: the plan of the first, so that it is made once; and the file's pace."""

    def __init__(self, pace: mixed.Pace | None = None) -> None:
        self.plans: dict[tuple[int, int], mixed.Plan | None] = {}
        self.pace = mixed.Pace() if pace is None else pace


def write(
    bits: Bits, encoder: Encoder, strides: tuple[int, ...] = (), memory: Memory | None = None
) -> tuple[Code, bytes]:
    """Code a tensor of unsigned integers.

    Args:
        bits: the bit patterns, any shape.
        encoder: takes the code.
        strides: distances along a row that may matter, such as the sizes of kernels.
        memory: of the tensor that this is a piece of.

    Returns:
        How it was written, and the side information that goes uncoded.
    """
    found = None if bits.itemsize == 2 and _never_quantised(bits) else levels.find(bits)
    if found is None:
        return _write_many(bits, encoder, strides, memory)
    matrix = found.index.reshape(_matrix(bits.shape))
    parted = classes.partition(matrix, found.size)
    common, ordered = _ordered(found)
    below = found.upper - (common < found.upper)
    plan = _plan(ordered[matrix], found.size, below, strides, memory)
    needed = min(parted.bits, math.inf if plan is None else plan.bits) + 8 * len(found.side)
    if found.size > _FEW and planes.length(_flat(bits)) < needed:
        return _write_many(bits, encoder, strides, memory)
    if plan is not None and plan.bits < _GAIN * parted.bits - 16 and _paced(plan, matrix.shape, memory):
        side = found.side + varint.put([common, below]) + mixed.write(plan, ordered[matrix], found.size, encoder)
        return Code("mixed", found.kind, found.size, found.half, axis=plan.axis), side
    static, stored = classes.write(parted, matrix, found.size, encoder)
    axis = parted.axis if parted.count > 1 else 0
    return Code("table", found.kind, found.size, found.half, static, axis, parted.count), found.side + stored


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


def _never_quantised(bits: Bits) -> bool:
    """Whether byte planes are as short as the index into a table can be: 16-bit numbers that nobody rounded further."""
    sample = bits.reshape(-1)[:: -(-bits.size // _SAMPLE) or 1]
    _, counts = levels.distinct(sample)
    zeros = np.count_nonzero(sample == 0)
    if not _FEW < len(counts) <= MOST_VALUES or zeros > _LEAST_ZEROS * len(sample):
        return False
    # what a sample takes, and about what it lacks of the entropy of all (Miller's correction, 0.72 bits a value)
    index = (information(counts) + 0.72 * len(counts)) * bits.size / len(sample)
    return planes.length(_flat(bits)) <= index + 4 * len(counts) + 8 * bits.itemsize * len(counts)


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
