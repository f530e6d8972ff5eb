"""The IDX files of MNIST and Fashion-MNIST.

IDX (LeCun, http://yann.lecun.com/exdb/mnist/): two zero bytes, the type of the entries (8 = unsigned byte), the number
of dimensions, each dimension as a big-endian 32-bit number, then the entries, last dimension fastest. The published
files are IDX inside gzip. Only bytes are read here: the published files hold nothing else.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from paring.data.data_error import DataError
from paring.data.source import File
from paring.data.split import Split

_GZIP = b"\x1f\x8b"
_LIMIT = 1 << 28  # bytes; the largest published file holds 47 million
_DIMENSIONS = 4


def read_idx(data: bytes, *, limit: int = _LIMIT) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or inside gzip, as a read-only view.

    No more is unpacked than the header promises, and the header may promise at most `limit` bytes.
    Raises DataError, with what was expected, for everything that is not exactly one such file.
    """
    take = _Reader(data)
    magic = take(4, "the magic number")
    if magic[:2] != b"\0\0":
        raise DataError(f"not an IDX file: it starts with {magic.hex()}, expected 0000")
    if magic[2] != 8:
        raise DataError(f"an IDX file of type 0x{magic[2]:02x}; only 0x08 (unsigned byte) is read")
    if not 1 <= magic[3] <= _DIMENSIONS:
        raise DataError(f"an IDX file of {magic[3]} dimensions; expected 1 to {_DIMENSIONS}")
    sizes = np.frombuffer(take(4 * magic[3], "the dimensions"), dtype=">u4").tolist()
    if min(sizes) == 0 or math.prod(sizes) > limit:
        raise DataError(f"an IDX file that claims the shape {tuple(sizes)}; expected 1 to {limit} entries")
    entries = take(math.prod(sizes), f"the entries of shape {tuple(sizes)}")
    take.end()
    return np.frombuffer(entries, dtype=np.uint8).reshape(sizes)


class _Reader:
    """Takes bytes off the front of a file, unpacking gzip only as far as asked."""

    def __init__(self, data: bytes) -> None:
        self.rest = data
        self.gzip = zlib.decompressobj(wbits=31) if data[:2] == _GZIP else None

    def __call__(self, count: int, what: str) -> bytes:
        if self.gzip is None:
            got, self.rest = self.rest[:count], self.rest[count:]
        else:
            got = self._unpack(count)
        if len(got) < count:
            raise DataError(f"an IDX file that ends inside {what}: {len(got)} bytes there, expected {count}")
        return got

    def end(self) -> None:
        """Nothing may follow, and the checksum of gzip must be there and right."""
        if self.gzip is not None:
            more = self._unpack(1)
            if not more and not self.gzip.eof:
                raise DataError("an IDX file whose gzip stream is cut off before its checksum")
            self.rest = more or self.gzip.unused_data
        if self.rest:
            raise DataError("an IDX file with more bytes than its dimensions promise")

    def _unpack(self, count: int) -> bytes:
        assert self.gzip is not None
        got = b""
        try:
            while len(got) < count and self.rest and not self.gzip.eof:
                got += self.gzip.decompress(self.rest, count - len(got))
                self.rest = self.gzip.unconsumed_tail
        except zlib.error as error:
            raise DataError(f"an IDX file whose gzip stream is damaged: {error}") from error
        return got


def parts(contents: Mapping[File, bytes]) -> tuple[Split, Split]:
    """(train, test) of MNIST or Fashion-MNIST from its four files: train images and labels, test images and labels.

    x is (N, 1, 28, 28) in [0, 1] (grey value / 255), not standardised. Raises DataError for wrong shapes or labels.
    """
    train, train_labels, test, test_labels = contents.items()
    return _part(train, train_labels), _part(test, test_labels)


def _part(images: tuple[File, bytes], labels: tuple[File, bytes]) -> Split:
    x = _array(*images, (images[0].count, 28, 28))
    y = _array(*labels, (labels[0].count,))
    if y.max() > 9:
        raise DataError(f"{labels[0].name}: a label is {y.max()}, expected 0 to 9")
    x_scaled = np.divide(x[:, None], np.float32(255), dtype=np.float32)
    return Split(torch.from_numpy(x_scaled), torch.from_numpy(y.astype(np.int64)))


def _array(file: File, data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        array = read_idx(data)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    if array.shape != shape:
        raise DataError(f"{file.name} holds the shape {array.shape}, expected {shape}")
    return array
