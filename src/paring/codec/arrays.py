"""One tensor as bytes: which of three codes is the shortest, and how it is written and read.

A tensor is seen as the bit patterns of its entries (unsigned integers), so nothing is rounded and NaNs and signed zeros
come back as they were.

* raw: the bytes, little-endian.
* table: a table of the different values, and for every entry its index in it, entropy-coded. Zero is a value like any
  other. Rows or columns may fall into classes, each with its own frequencies, where they differ (a pruned input column
  is nearly all zeros, others are not); the class of every row or column is coded first.
* planes: byte k of all entries makes plane k; each plane is entropy-coded as bytes or kept as it is. Trained floats
  that were not quantised lose about a sixth this way, all of it in sign and exponent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paring.codec import varint
from paring.codec.entropy import (
    Decoder,
    Encoder,
    Symbols,
    adaptive_bits,
    frequencies,
    static_bits,
)
from paring.codec.error import PareError

Bits = NDArray[Any]
MOST_VALUES = 4096
CLASSES = (2, 3, 4, 8)
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Code:
    """How one tensor is written.

    Attributes:
        kind: see the module's docstring.
        values: size of the table.
        half: the table holds float16, the entries are float32.
        static: the frequencies are stored; otherwise they adapt.
        axis: rows (0) or columns (1) fall into classes; without meaning for one class.
        classes: number of classes.
        planes: which byte planes are entropy-coded, lowest byte first.
    """

    kind: Literal["raw", "table", "planes"]
    values: int = 0
    half: bool = False
    static: bool = False
    axis: int = 0
    classes: int = 1
    planes: tuple[bool, ...] = ()

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
        known = {"kind": str, "values": int, "half": bool, "static": bool, "axis": int, "classes": int, "planes": list}
        if not isinstance(given, dict) or any(type(v) is not known.get(k) for k, v in given.items()):
            raise PareError(f"the code of a tensor cannot be read: {str(given)[:100]}")
        found = cls(**{**given, "planes": tuple(given.get("planes", ()))})
        right = {
            "raw": found == cls("raw"),
            "table": 1 <= found.values <= MOST_VALUES
            and found.axis in (0, 1)
            and 1 <= found.classes <= max(CLASSES)
            and (not found.half or itemsize == 4)
            and not found.planes,
            "planes": len(found.planes) == itemsize and found == cls("planes", planes=found.planes),
        }
        if not right.get(found.kind, False):
            raise PareError(f"the code of a tensor makes no sense: {str(given)[:100]}")
        return found


def write(bits: Bits, encoder: Encoder) -> tuple[Code, bytes]:
    """Code a tensor of unsigned integers; returns how, and the side information that goes uncoded."""
    found = _table(bits)
    if found is not None:
        return _write_table(*found, bits.shape, encoder)
    return _write_planes(bits, encoder)


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
    count = int(np.prod(shape, dtype=np.int64))
    if code.kind == "raw":
        raw = side.take(count * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if code.kind == "planes":
        return _read_planes(code, count, dtype, side, decoder).reshape(shape)
    return _read_table(code, shape, dtype, side, decoder)


def _table(bits: Bits) -> tuple[Bits, Symbols] | None:
    """The different values and the index of every entry, when there are few."""
    flat = bits.reshape(-1)
    if len(flat) < 2:
        return None
    values = np.unique(flat[:_SAMPLE])
    if len(values) > MOST_VALUES:
        return None
    index = np.searchsorted(values, flat).clip(max=len(values) - 1)
    if not np.array_equal(values[index], flat):
        values, index = np.unique(flat, return_inverse=True)
    if len(values) > MOST_VALUES or len(values) * 2 > len(flat):
        return None
    return values, index.reshape(-1).astype(np.int32)


def _write_table(values: Bits, symbols: Symbols, shape: tuple[int, ...], encoder: Encoder) -> tuple[Code, bytes]:
    size = len(values)
    axis, count, groups = _best_classes(symbols, size, shape)
    parts = list(_parts(symbols, shape, axis, groups, count))
    tables = [frequencies(part, size) for part in parts]
    stored = varint.put(int(f) for table in tables for f in table)
    fixed = sum(static_bits(np.bincount(p, minlength=size), t) for p, t in zip(parts, tables, strict=True))
    moving = sum(adaptive_bits(part, size) for part in parts)
    static = fixed + 8 * len(stored) < moving
    half = values.dtype.itemsize == 4 and _fits_half(values)
    if count > 1:
        encoder.adaptive(groups, count)
    for part, table in zip(parts, tables, strict=True):
        if static:
            encoder.static(part, table)
        else:
            encoder.adaptive(part, size)
    kept = values.view(np.float32).astype(np.float16).view(np.uint16) if half else values
    side = kept.astype(kept.dtype.newbyteorder("<")).tobytes() + (stored if static else b"")
    code = Code("table", values=size, half=half, static=static, axis=axis if count > 1 else 0, classes=count)
    return code, side


def _read_table(
    code: Code, shape: tuple[int, ...], dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder
) -> Bits:
    size = code.values
    if code.half:
        narrow = np.frombuffer(side.take(2 * size), dtype="<f2")
        values = narrow.astype(np.float32).view(np.uint32)
    else:
        values = np.frombuffer(side.take(size * dtype.itemsize), dtype=dtype.newbyteorder("<")).astype(dtype)
    tables = None
    if code.static:
        tables = np.array(side.numbers(size * code.classes), dtype=np.int64).reshape(code.classes, size)
        if (tables < 1).any() or (tables >= 1 << 31).any() or (tables.sum(1) >= 1 << 31).any():
            raise PareError("a table of frequencies makes no sense")

    def symbols(number: int, count: int) -> Symbols:
        return decoder.static(count, tables[number]) if tables is not None else decoder.adaptive(count, size)

    rows, columns = _matrix(shape)
    if code.classes == 1:
        return values[symbols(0, rows * columns)].reshape(shape)
    groups = decoder.adaptive((rows, columns)[code.axis], code.classes)
    out = np.empty((rows, columns), dtype=dtype)
    view = out if code.axis == 0 else out.T
    for number in range(code.classes):
        chosen = groups == number
        view[chosen] = values[symbols(number, int(chosen.sum()) * view.shape[1])].reshape(-1, view.shape[1])
    return out.reshape(shape)


def _best_classes(symbols: Symbols, size: int, shape: tuple[int, ...]) -> tuple[int, int, Symbols]:
    """(axis, number of classes, class of each row or column) with the shortest adaptive code."""
    best = (adaptive_bits(symbols, size), 0, 1, _one())
    common = int(np.bincount(symbols, minlength=size).argmax())
    matrix = symbols.reshape(_matrix(shape)) == common
    for axis in (0, 1):
        share = matrix.mean(1 - axis)
        if len(share) < 4 or len(symbols) // len(share) < 4:
            continue
        for count in CLASSES:
            edges = np.quantile(share, np.arange(1, count) / count)
            groups = np.searchsorted(edges, share, side="right").astype(np.int32)
            bits = adaptive_bits(groups, count)
            bits += sum(adaptive_bits(part, size) for part in _parts(symbols, shape, axis, groups, count))
            if bits < best[0]:
                best = (bits, axis, count, groups)
    return best[1:]


def _parts(symbols: Symbols, shape: tuple[int, ...], axis: int, groups: Symbols, count: int) -> Iterator[Symbols]:
    """The symbols of one class after the other."""
    if count == 1:
        yield symbols
        return
    matrix = symbols.reshape(_matrix(shape))
    view = matrix if axis == 0 else matrix.T
    for number in range(count):
        yield view[groups == number].reshape(-1)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=np.int64))


def _one() -> Symbols:
    return np.zeros(1, dtype=np.int32)


def _fits_half(values: Bits) -> bool:
    floats = values.view(np.float32)
    with np.errstate(over="ignore"):
        narrow = floats.astype(np.float16)
    return bool(np.isfinite(narrow).all()) and np.array_equal(narrow.astype(np.float32).view(np.uint32), values)


def _write_planes(bits: Bits, encoder: Encoder) -> tuple[Code, bytes]:
    width = bits.dtype.itemsize
    planes = bits.astype(bits.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).reshape(-1, width)
    coded, side = [], b""
    for number in range(width):
        plane = np.ascontiguousarray(planes[:, number]).astype(np.int32)
        coded.append(adaptive_bits(plane, 256) < 0.98 * 8 * len(plane))
        if coded[-1]:
            encoder.adaptive(plane, 256)
        else:
            side += planes[:, number].tobytes()
    if not any(coded):
        return Code("raw"), planes.tobytes()
    return Code("planes", planes=tuple(coded)), side


def _read_planes(code: Code, count: int, dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder) -> Bits:
    planes = np.empty((count, dtype.itemsize), dtype=np.uint8)
    for number, coded in enumerate(code.planes):
        if coded:
            planes[:, number] = decoder.adaptive(count, 256)
        else:
            planes[:, number] = np.frombuffer(side.take(count), dtype=np.uint8)
    return planes.view(dtype.newbyteorder("<")).astype(dtype).reshape(-1)
