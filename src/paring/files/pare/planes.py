"""Tensors that take many values: byte k of all entries makes plane k, each coded as bytes or kept as it is.

What can be foretold of trained floats lies in the exponent and the first bits of the mantissa. So entries are *turned* first: the
sign goes behind the mantissa, the highest byte is the exponent alone. Of the 256 exponents few occur. Listed and numbered,
they leave room in their byte for the highest bits of the byte below, which *move* up and are coded with the exponent.
Trained float32 numbers lose about a sixth this way, bfloat16 numbers a third.

A plane is kept as it is (RAW), coded adaptively (RANGE), or by Huffman's codes in a deflate stream (HUFFMAN): within a fiftieth
of the length, and several times as fast.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import varint
from paring.files.pare.entropy import Decoder, Encoder, adaptive_bits
from paring.files.pare.error import PareError
from paring.files.pare.logs import information

Bits = NDArray[Any]
RAW, RANGE, HUFFMAN = 0, 1, 2
MOST_MOVED = 3
_SAMPLE = 1 << 14
_EXACT = 1 << 16  # entries of planes that take the shorter code, however fast
_BLOCK = 1 << 17  # entries that are taken apart and put together at once
_RUNS = 0.2  # bits an entry, below which runs of one byte may be what there is
_LOST = 0.01  # bits an entry that runs may take more, for their speed
_NEAR = 1.02  # times the length of the adaptive code, up to which Huffman's is taken for its speed


@dataclass(frozen=True)
class Layout:
    """How entries are taken apart.

    Attributes:
        coders: of each plane, lowest byte first; none for entries that stand whole.
        turned: the bits are rotated by one, the highest becomes the lowest.
        moved: how many bits of the second highest plane lie in the highest.
    """

    coders: tuple[int, ...] = ()
    turned: bool = False
    moved: int = 0

    def fits(self, width: int) -> bool:
        """Whether entries of so many bytes can be taken apart like this."""
        right = all(type(c) is int and c in (RAW, RANGE, HUFFMAN) for c in self.coders) and type(self.turned) is bool
        if not any(self.coders):
            return right and len(self.coders) in (0, width) and self == Layout(self.coders)
        return right and len(self.coders) == width and 0 <= self.moved <= (MOST_MOVED if width > 1 else 0)


def length(flat: Bits) -> float:
    """About the bits that unsigned integers (entries,) take; from a sample."""
    sample = flat[:: -(-len(flat) // _SAMPLE) or 1]
    return _planned(sample)[3] * len(flat) / max(1, len(sample))


def write(flat: Bits, encoder: Encoder) -> tuple[Layout, bytes]:
    """Code unsigned integers (entries,); returns how they were taken apart, and the side information."""
    little = flat.dtype.newbyteorder("<")
    whole = flat.astype(little, copy=False).tobytes
    if not len(flat):
        return Layout(), b""
    turned, moves, pays, _ = _planned(flat[:: -(-len(flat) // _SAMPLE)])
    if not any(pays):
        return Layout(), whole()
    parts = _apart(flat, turned)
    side: list[bytes] = []
    moved = 0
    if moves:
        tops = _present(parts[-1])
        moved = _room(len(tops))
    if moved:
        side += [bytes([len(tops)]), tops]
        parts = _move(parts, tops, moved)
    coders = []
    for part, coded in zip(parts, pays, strict=True):
        coder, own = _coded(part, encoder) if coded else (RAW, part)
        coders.append(coder)
        side.append(own)
    return (Layout(tuple(coders), turned, moved), b"".join(side)) if any(coders) else (Layout(), whole())


def read(layout: Layout, count: int, dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder) -> Bits:
    """The inverse of `write`.

    Raises:
        PareError: the file is damaged.
    """
    little = dtype.newbyteorder("<")
    if not any(layout.coders):
        return np.frombuffer(side.take(count * dtype.itemsize), dtype=little).astype(dtype)
    tops = b""
    if layout.moved:
        tops = side.take(side.take(1)[0])
        if not tops or len(tops) << layout.moved > 256 or list(tops) != sorted(set(tops)):
            raise PareError("the highest bytes of a tensor make no sense")
    parts = [_uncoded(coder, count, side, decoder) for coder in layout.coders]
    lifted = np.zeros(0, dtype=np.uint8)
    if layout.moved:
        parts, lifted = _moved_back(parts, tops, layout.moved)
    out = np.empty(count, dtype=little)
    columns = out.view(np.uint8).reshape(count, dtype.itemsize)
    views = [np.frombuffer(part, dtype=np.uint8) for part in parts]
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        for k, view in enumerate(views):
            columns[block, k] = view[block]
        if layout.moved:
            columns[block, -2] |= lifted[block]
        if layout.turned:
            turned = out[block]
            out[block] = (turned >> 1) | (turned << (8 * dtype.itemsize - 1))
    return out.astype(dtype, copy=False)


def _planned(sample: Bits) -> tuple[bool, bool, tuple[bool, ...], float]:
    """What is best for a sample: turned or not, moved or not, which planes are worth coding, and about the bits of all."""
    found: list[tuple[bool, bool, tuple[bool, ...], float]] = []
    for turned in (False, True):
        parts = _apart(sample, turned)
        found.append((turned, False, *_worth(parts)))
        pays = found[-1][2]
        if turned and len(parts) > 1 and pays[-1]:
            tops = _present(parts[-1])
            if moved := _room(len(tops)):
                found.append((turned, True, *_worth(_move(parts, tops, moved))))
    return min(found, key=lambda one: one[3])


def _worth(parts: list[bytes]) -> tuple[tuple[bool, ...], float]:
    """Which planes are worth coding, and about the bits that all take."""
    bits, pays = 0.0, []
    for part in parts:
        counts = np.bincount(np.frombuffer(part, dtype=np.uint8), minlength=256).astype(np.int64)
        needed = information(counts) + 4 * int((counts > 0).sum())
        pays.append(needed < 0.98 * 8 * len(part))
        bits += min(needed, 8 * len(part))
    return tuple(pays), bits


def _room(tops: int) -> int:
    """How many bits may move up to so many different bytes."""
    return next(moved for moved in range(MOST_MOVED, -1, -1) if tops << moved <= 256)


def _apart(flat: Bits, turned: bool) -> list[bytes]:
    """The planes, lowest byte first."""
    width, little = flat.dtype.itemsize, flat.dtype.newbyteorder("<")
    out = np.empty((width, len(flat)), dtype=np.uint8)
    for start in range(0, len(flat), _BLOCK):
        block = np.ascontiguousarray(flat[start : start + _BLOCK])
        if turned:
            block = (block << 1) | (block >> (8 * width - 1))
        columns = block.astype(little, copy=False).view(np.uint8).reshape(-1, width)
        for k in range(width):
            out[k, start : start + _BLOCK] = columns[:, k]
    return [row.tobytes() for row in out]


def _present(part: bytes) -> bytes:
    """The different bytes, in order."""
    some = bytes(set(part[:_SAMPLE]))
    return bytes(sorted({*some, *part.translate(None, some)}))


def _move(parts: list[bytes], tops: bytes, moved: int) -> list[bytes]:
    """The highest bits of the second highest plane go up, behind the number of the highest byte."""
    number, low = bytearray(256), 8 - moved
    for place, top in enumerate(tops):
        number[top] = place << moved
    above = np.frombuffer(parts[-1].translate(bytes(number)), dtype=np.uint8)
    second = np.frombuffer(parts[-2], dtype=np.uint8)
    return [*parts[:-2], (second & np.uint8((1 << low) - 1)).tobytes(), (above | (second >> low)).tobytes()]


def _moved_back(parts: list[bytes], tops: bytes, moved: int) -> tuple[list[bytes], NDArray[np.uint8]]:
    """The planes with the highest bytes themselves, and what is to be added to the second highest."""
    highest, second = parts[-1], parts[-2]
    largest, below = (int(np.frombuffer(part, dtype=np.uint8).max(initial=0)) for part in (highest, second))
    if largest >> moved >= len(tops) or below >> (8 - moved):
        raise PareError("the highest bytes of a tensor make no sense")
    table = bytes(tops[n >> moved] if n >> moved < len(tops) else 0 for n in range(256))
    lift = bytes((n << (8 - moved)) & 255 for n in range(256))
    return [*parts[:-1], highest.translate(table)], np.frombuffer(highest.translate(lift), dtype=np.uint8)


def _coded(part: bytes, encoder: Encoder) -> tuple[int, bytes]:
    """The shorter of two codes, or the fast one when both are about as long; the plane itself when none is shorter."""
    packed = _deflated(part, zlib.Z_HUFFMAN_ONLY)
    whole, bits = np.frombuffer(part, dtype=np.uint8), 8 * len(packed)
    if len(part) <= _EXACT:
        needed, near = adaptive_bits(whole.astype(np.int32), 256), 1.0
    else:
        sample = whole[:: -(-len(whole) // _SAMPLE)]
        counts = np.bincount(sample, minlength=256).astype(np.int64)
        needed = information(counts) * len(whole) / len(sample)
        near = _NEAR
    if min(bits, needed) >= 8 * len(part):
        return RAW, part
    if near > 1 and bits > near * needed + 8 and needed < _RUNS * len(part):  # Huffman's codes have no less than a bit
        packed = _deflated(part, zlib.Z_RLE)
        bits = 8 * len(packed) - int(_LOST * len(part))
    if bits <= near * needed + 8:
        return HUFFMAN, b"".join([varint.put([len(packed)]), packed])
    encoder.adaptive(whole.astype(np.int32), 256)
    return RANGE, b""


def _deflated(part: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return packer.compress(part) + packer.flush()


def _uncoded(coder: int, count: int, side: varint.Reader, decoder: Decoder) -> bytes:
    if coder == RAW:
        return side.take(count)
    if coder == RANGE:
        return decoder.adaptive(count, 256).astype(np.uint8).tobytes()
    packed, unpacker = side.take(side.number()), zlib.decompressobj(-15)
    try:
        found = unpacker.decompress(packed, count + 1)
    except zlib.error as error:
        raise PareError(f"a plane of bytes is damaged: {error}") from error
    if len(found) != count or not unpacker.eof or unpacker.unused_data:
        raise PareError("a plane of bytes is longer or shorter than its tensor")
    return found
