"""The indices of a matrix, whose rows or columns may fall into classes with frequencies of their own.

The class of every row (or column) is coded first. Which partition is the best follows from one histogram per axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paring.files.pare import varint
from paring.files.pare.entropy import Decoder, Encoder, Symbols, adaptive_bits, frequencies, static_bits
from paring.files.pare.error import PareError
from paring.files.pare.logs import information

CLASSES = (2, 3, 4, 8)
_LARGEST_HISTOGRAM = 1 << 21


@dataclass(frozen=True)
class Partition:
    """Rows (axis 0) or columns (1) in classes.

    Attributes:
        axis: without meaning for one class.
        count: number of classes.
        groups: class of each row or column.
        bits: estimated length of the code.
    """

    axis: int
    count: int
    groups: Symbols
    bits: float


def partition(matrix: Symbols, size: int) -> Partition:
    """The partition with the shortest code.

    Args:
        matrix: (rows, columns) of symbols.
        size: of the alphabet.
    """
    total = np.bincount(matrix.reshape(-1), minlength=size).astype(np.int64)
    best = Partition(0, 1, np.zeros(1, dtype=np.int32), _estimate(total[None]))
    common = int(total.argmax())
    for axis in (0, 1):
        lines, length = matrix.shape[axis], matrix.shape[1 - axis]
        if lines < 4 or length < 4 or lines * size > _LARGEST_HISTOGRAM:
            continue
        place = np.arange(lines, dtype=np.int64) * size
        spread = matrix + (place[:, None] if axis == 0 else place[None])
        counts = np.bincount(spread.reshape(-1), minlength=lines * size).reshape(lines, size).astype(np.int64)
        order = np.sort(counts[:, common])
        for number in CLASSES:
            edges = order[[lines * k // number for k in range(1, number)]]
            groups = np.searchsorted(edges, counts[:, common], side="right").astype(np.int32)
            summed = np.zeros((number, size), dtype=np.int64)
            np.add.at(summed, groups, counts)
            bits = _estimate(summed) + adaptive_bits(groups, number)
            if bits < best.bits:
                best = Partition(axis, number, groups, bits)
    return best


def write(found: Partition, matrix: Symbols, size: int, encoder: Encoder) -> tuple[bool, bytes]:
    """Code the classes and the indices; returns whether the frequencies are stored, and they themselves."""
    parts = list(_parts(found, matrix))
    tables = [frequencies(part, size) for part in parts]
    stored = varint.put(int(f) for table in tables for f in table)
    fixed = sum(static_bits(np.bincount(p, minlength=size), t) for p, t in zip(parts, tables, strict=True))
    static = fixed + 8 * len(stored) < sum(adaptive_bits(part, size) for part in parts)
    if found.count > 1:
        encoder.adaptive(found.groups, found.count)
    for part, table in zip(parts, tables, strict=True):
        if static:
            encoder.static(part, table)
        else:
            encoder.adaptive(part, size)
    return static, stored if static else b""


def read(
    shape: tuple[int, int], axis: int, count: int, size: int, static: bool, side: varint.Reader, decoder: Decoder
) -> Symbols:
    """The inverse of `write`: (rows, columns).

    Raises:
        PareError: the file is damaged.
    """
    tables = None
    if static:
        tables = np.array(side.numbers(size * count), dtype=np.int64).reshape(count, size)
        if (tables < 1).any() or (tables >= 1 << 31).any() or (tables.sum(1) >= 1 << 31).any():
            raise PareError("a table of frequencies makes no sense")

    def symbols(number: int, length: int) -> Symbols:
        return decoder.static(length, tables[number]) if tables is not None else decoder.adaptive(length, size)

    if count == 1:
        return symbols(0, shape[0] * shape[1]).reshape(shape)
    groups = decoder.adaptive(shape[axis], count)
    out = np.empty(shape, dtype=np.int32)
    view = out if axis == 0 else out.T
    for number in range(count):
        chosen = groups == number
        view[chosen] = symbols(number, int(chosen.sum()) * view.shape[1]).reshape(-1, view.shape[1])
    return out


def _parts(found: Partition, matrix: Symbols) -> Iterator[Symbols]:
    """The symbols of one class after the other."""
    if found.count == 1:
        yield matrix.reshape(-1)
        return
    view = matrix if found.axis == 0 else matrix.T
    for number in range(found.count):
        yield view[found.groups == number].reshape(-1)


def _estimate(counts: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> float:
    """Length of the adaptive code of symbols that occur so often in each class: what is learned costs half a logarithm."""
    learned = sum((int((row > 0).sum()) * int(row.sum()).bit_length()) / 2 for row in counts)
    return information(counts) + learned
