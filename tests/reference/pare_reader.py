"""A reader of `.pare` files in plain Python, written from FORMAT.md alone: the naive twin of `paring.files.pare.container.File`.

It checks nothing. Entries come back as integers (bit patterns).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

from tests.reference.range_decoder import RangeDecoder

WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


def read(data: bytes, dictionary: bytes) -> tuple[dict[str, tuple[list[int], list[int]]], Any]:
    """Name -> (shape, bit patterns), and the manifest."""
    length, _ = struct.unpack("<II", data[-8:])
    unpacker = zlib.decompressobj(-15, dictionary)
    header = json.loads(unpacker.decompress(data[-8 - length : -8]))
    found: dict[str, tuple[list[int], list[int]]] = {}
    at = 8
    for section in header["sections"]:
        body = data[at : at + section["length"]]
        at += section["length"] + 4
        side, decoder = Side(body[: section["side"]]), RangeDecoder(body[section["side"] :])
        for piece in section["tensors"]:
            entries = entries_of(piece, side, decoder)
            found.setdefault(piece["name"], (piece.get("whole", piece["shape"]), []))[1].extend(entries)
    return found, header["manifest"]


class Side:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def varint(self) -> int:
        byte = self.take(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def signed(self) -> int:
        value = self.varint()
        return -(value + 1) // 2 if value % 2 else value // 2


def entries_of(piece: dict[str, Any], side: Side, decoder: RangeDecoder) -> list[int]:
    shape, kind, half = piece["shape"], piece["kind"], piece.get("half", False)
    rows = shape[0] if shape else 1
    columns = math.prod(shape[1:])
    width = WIDTHS.get(piece.get("dtype", "float32"), 1)
    axis = piece.get("axis", 0)
    if kind in ("raw", "planes"):
        return plain(piece, rows * columns, 2 if half else width, half, side, decoder)
    if kind == "sparse":
        symbols = mixed(rows, columns, axis, 2, 1, side, decoder)
        rest = iter(plain(piece, sum(symbols), 2 if half else width, half, side, decoder))
        return [next(rest) if symbol else 0 for symbol in symbols]
    size = piece["values"]
    grouped = piece.get("groups")
    value = None if grouped else values(piece.get("levels", "table"), size, half, width, rows, side)
    value = value or in_groups(grouped, rows * columns, size, width, side, decoder)
    if kind == "mixed":
        common, below = side.varint(), side.varint()
        order = [common, *(n for n in range(size) if n != common)]
        index = [order[symbol] for symbol in mixed(rows, columns, axis, size, below, side, decoder)]
    else:
        index = classed(piece, rows, columns, size, side, decoder)
    return [value(place if grouped else place // columns, one) for place, one in enumerate(index)]


def plain(piece: dict[str, Any], count: int, width: int, half: bool, side: Side, decoder: RangeDecoder) -> list[int]:
    coders, moved = [int(coder) for coder in piece.get("planes", [])], piece.get("moved", 0)
    if any(coders):
        tops = list(side.take(side.take(1)[0])) if moved else []
        columns = [plane(coder, count, side, decoder) for coder in coders]
        if moved:
            columns[-2] = [low + (high % 2**moved << 8 - moved) for low, high in zip(*columns[-2:], strict=True)]
            columns[-1] = [tops[high >> moved] for high in columns[-1]]
        found = [sum(column[i] << 8 * k for k, column in enumerate(columns)) for i in range(count)]
        if piece.get("turned"):
            found = [one // 2 + (one % 2 << 8 * width - 1) for one in found]
    else:
        data = side.take(count * width)
        found = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
    return [pattern(struct.unpack("<e", struct.pack("<H", one))[0]) for one in found] if half else found


def plane(coder: int, count: int, side: Side, decoder: RangeDecoder) -> list[int]:
    if coder == 2:
        return list(zlib.decompress(side.take(side.varint()), -15))
    return decoder.adaptive(count, 256) if coder else list(side.take(count))


def pattern(number: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def values(kind: str, size: int, half: bool, width: int, rows: int, side: Side) -> Any:
    if kind == "table":
        data = side.take(size * (2 if half else width))
        if half:
            listed = [pattern(struct.unpack("<e", data[2 * i : 2 * i + 2])[0]) for i in range(size)]
        else:
            listed = [int.from_bytes(data[width * i : width * i + width], "little") for i in range(size)]
        return lambda row, index: listed[index]
    first = side.signed()
    steps = [struct.unpack("<f", side.take(4))[0] for _ in range(rows if kind == "rows" else 1)]

    def entry(row: int, index: int) -> int:
        (product,) = struct.unpack("<f", struct.pack("<f", (first + index) * steps[row if kind == "rows" else 0]))
        return pattern(struct.unpack("<e", struct.pack("<e", product))[0] if half else product)

    return entry


def single(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def narrowed(number: float, rounding: str) -> float:
    if rounding == "float16":
        return float(struct.unpack("<e", struct.pack("<e", number))[0])
    if rounding == "float32":
        return number
    bits = pattern(number)
    low, kept = bits % 65536, bits // 65536
    kept += low > 32768 or (low == 32768 and kept % 2 == 1)
    return float(struct.unpack("<f", struct.pack("<I", kept * 65536))[0])


def in_groups(told: dict[str, Any], count: int, size: int, width: int, side: Side, decoder: RangeDecoder) -> Any:
    if told.get("listed"):
        numbers = [struct.unpack("<f", side.take(4))[0] for _ in range(size)]
    else:
        first = side.signed()
        numbers = [float(first + i) for i in range(size)]
    nested = [told[key] | {"shape": [1, count // told["size"]]} for key in ("scales", "shifts") if key in told]
    read = [[struct.unpack("<f", struct.pack("<I", one))[0] for one in entries_of(n, side, decoder)] for n in nested]
    rounding, offsets = told.get("rounding", "float32"), told.get("offsets")

    def entry(place: int, index: int) -> int:
        c, s = numbers[index], read[0][place // told["size"]]
        z = read[1][place // told["size"]] if offsets else 0.0
        if offsets == "shift":
            c = single(c - z)
        made = single(c * s)
        if offsets in ("add", "fused"):
            made = single((narrowed(made, rounding) if offsets == "add" else made) + z)
        bits = pattern(narrowed(made, rounding))
        if width == 4:
            return bits
        return bits // 65536 if rounding == "bfloat16" else int(struct.unpack("<H", struct.pack("<e", made))[0])

    return entry


def classed(piece: dict[str, Any], rows: int, columns: int, size: int, side: Side, decoder: RangeDecoder) -> list[int]:
    count, axis = piece.get("classes", 1), piece.get("axis", 0)
    tables = [[side.varint() for _ in range(size)] for _ in range(count)] if piece.get("static") else None
    groups = decoder.adaptive(columns if axis else rows, count) if count > 1 else [0] * rows
    out = [0] * (rows * columns)
    for number in range(count):
        if axis:
            places = [r * columns + c for c in range(columns) if groups[c] == number for r in range(rows)]
        else:
            places = [r * columns + c for r in range(rows) if groups[r] == number for c in range(columns)]
        found = [] if tables else decoder.adaptive(len(places), size)
        if tables:
            found = [decoder.symbol(tables[number]) for _ in places]
        for place, symbol in zip(places, found, strict=True):
            out[place] = symbol
    return out


def mixed(rows: int, columns: int, axis: int, size: int, below: int, side: Side, decoder: RangeDecoder) -> list[int]:
    steps, lanes = (columns, rows) if axis else (rows, columns)
    everything = [[True] * lanes for _ in range(steps)]
    present = bits_of(everything, side, decoder)
    upper = [[below == 0] * lanes for _ in range(steps)]
    if 0 < below < size - 1:
        upper = bits_of(present, side, decoder)
    first = [(t, u) for t in range(steps) for u in range(lanes) if present[t][u] and not upper[t][u]]
    second = [(t, u) for t in range(steps) for u in range(lanes) if present[t][u] and upper[t][u]]
    symbols = [[0] * lanes for _ in range(steps)]
    for (t, u), place in zip(first, decoder.adaptive(len(first), max(1, below)), strict=True):
        symbols[t][u] = 1 + place
    for (t, u), place in zip(second, decoder.adaptive(len(second), max(1, size - 1 - below)), strict=True):
        symbols[t][u] = 1 + below + place
    return [symbols[c][r] if axis else symbols[r][c] for r in range(rows) for c in range(columns)]


def log(number: int) -> int:
    e = number.bit_length() - 1
    m = number * 4096 // 2**e - 4096
    return (65536 * e + round(65536 * math.log2(1 + m / 4096))) // 256


def bits_of(coded: list[list[Any]], side: Side, decoder: RangeDecoder) -> list[list[bool]]:
    lags = [side.varint() for _ in range(side.varint())]
    bias, lane, near, excess, *weights = [side.signed() for _ in range(4 + len(lags))]
    bits: list[list[int]] = [[0] * len(row) for row in coded]  # 1, -1 or 0: a one, a zero, nothing
    for t, row in enumerate(coded):
        positions = [u for u in range(len(row)) if row[u]]
        before = [bits[s][u] for s in range(t) for u in range(len(row)) if s in [t - lag for lag in lags]]
        b = log(2 * before.count(1) + 1) - log(2 * before.count(-1) + 1)
        expected = end = 0
        c = 0
        for done, u in enumerate(positions):
            if done == end:
                end = max(64, 4 * end)
                ones = sum(bits[t][v] > 0 for v in positions[:done])
                c = log((2 * ones + 1) << 16) - log(2 * expected + (1 << 16)) if done else 0
            n1, n0 = sum(bits[s][u] > 0 for s in range(t)), sum(bits[s][u] < 0 for s in range(t))
            x = 256 * bias + lane * (log(2 * n1 + 1) - log(2 * n0 + 1)) + near * b + excess * c
            x += sum(256 * w * bits[t - lag][u] for lag, w in zip(lags, weights, strict=True) if lag <= t)
            chance = round(2**24 / (1 + 2.0 ** (-max(-4096, min(4096, x // 256)) / 256)))
            bits[t][u] = 1 if decoder.symbol([2**24 - chance, chance]) else -1
            expected += ((2 * n1 + 1) << 16) // (2 * n1 + 2 * n0 + 2)
    return [[bit > 0 for bit in row] for row in bits]
