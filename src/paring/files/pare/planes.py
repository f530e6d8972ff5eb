"""Tensors that take many values: byte k of all entries makes plane k, each coded as bytes or kept as it is.

Trained floats lose about a sixth this way, all of it in sign and exponent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import varint
from paring.files.pare.entropy import Decoder, Encoder, Symbols, adaptive_bits

Bits = NDArray[Any]
_SAMPLE = 1 << 16


def write(flat: Bits, encoder: Encoder) -> tuple[tuple[bool, ...], bytes]:
    """Code unsigned integers (entries,); returns which planes are coded, and the bytes of the others."""
    width = flat.dtype.itemsize
    planes = flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, width)
    coded = tuple(_pays(planes[:, number]) for number in range(width))
    side = [np.ascontiguousarray(planes[:, n]).tobytes() for n in range(width) if not coded[n]]
    if not any(coded):
        return coded, planes.tobytes()
    for number in range(width):
        if coded[number]:
            encoder.adaptive(planes[:, number].astype(np.int32), 256)
    return coded, b"".join(side)


def read(coded: tuple[bool, ...], count: int, dtype: np.dtype[Any], side: varint.Reader, decoder: Decoder) -> Bits:
    """The inverse of `write`."""
    little = dtype.newbyteorder("<")
    if not any(coded):
        return np.frombuffer(side.take(count * dtype.itemsize), dtype=little).astype(dtype)
    raw = [None if one else np.frombuffer(side.take(count), dtype=np.uint8) for one in coded]
    planes = np.empty((count, dtype.itemsize), dtype=np.uint8)
    for number, plane in enumerate(raw):
        planes[:, number] = decoder.adaptive(count, 256) if plane is None else plane
    return planes.view(little).reshape(-1).astype(dtype, copy=False)


def _pays(plane: NDArray[np.uint8]) -> bool:
    """Whether coding a plane saves more than a fiftieth."""
    part: Symbols = plane[:: -(-len(plane) // _SAMPLE) or 1].astype(np.int32)
    return adaptive_bits(part, 256) < 0.98 * 8 * len(part)
