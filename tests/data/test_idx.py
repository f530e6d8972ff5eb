"""IDX: right files are read, every other one is refused with a reason, in bounded memory."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paring.data import DataError, read_idx

Writer = Callable[[NDArray[np.uint8]], bytes]
ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
PLAIN = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + bytes(range(24))
ZIPPED = gzip.compress(PLAIN, mtime=0)


def header(*sizes: int, kind: int = 8, magic: bytes = b"\0\0") -> bytes:
    return magic + bytes([kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize("data", [PLAIN, ZIPPED], ids=["plain", "gzip"])
def test_reads_what_was_written(data: bytes) -> None:
    got = read_idx(data)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, ARRAY)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (2, 1, 2, 3)])
def test_every_number_of_dimensions(idx: Writer, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(read_idx(idx(array)), array)


@pytest.mark.parametrize("data", [PLAIN, ZIPPED], ids=["plain", "gzip"])
def test_cut_at_any_byte_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(DataError):
            read_idx(data[:length])


@pytest.mark.parametrize("data", [PLAIN, ZIPPED], ids=["plain", "gzip"])
@pytest.mark.parametrize("tail", [b"\0", ZIPPED])
def test_anything_after_the_end_is_refused(data: bytes, tail: bytes) -> None:
    with pytest.raises(DataError, match="more bytes"):
        read_idx(data + tail)
    with pytest.raises(DataError, match="more bytes"):
        read_idx(gzip.compress(PLAIN + tail))


@given(position=st.integers(0, len(ZIPPED) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_gzip_never_gives_other_data(position: int, bit: int) -> None:
    data = bytearray(ZIPPED)
    data[position] ^= 1 << bit
    try:
        got = read_idx(bytes(data))
    except DataError:
        return
    np.testing.assert_array_equal(got, ARRAY)  # gzip's time stamp and the like carry no data


@given(st.binary(max_size=40), st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\x1f\x8b\x08\0"]))
def test_random_bytes_are_an_array_or_refused(tail: bytes, start: bytes) -> None:
    try:
        got = read_idx(start + tail)
    except DataError:
        return
    assert header(*got.shape) + got.tobytes() == start + tail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "magic number: 0 bytes there, expected 4"),
        (b"PK\3\4" + PLAIN, "starts with 504b0304, expected 0000"),
        (header(2, kind=13) + bytes(8), "type 0x0d; only 0x08"),
        (header() + bytes(4), "0 dimensions; expected 1 to 4"),
        (header(1, 1, 1, 1, 1) + bytes(1), "5 dimensions"),
        (header(0), r"shape \(0,\)"),
        (header(2**32 - 1, 0, 2**32 - 1), "claims the shape"),
        (header(*[2**32 - 1] * 3), "claims the shape"),
        (header(10) + bytes(9), r"entries of shape \(10,\): 9 bytes there, expected 10"),
    ],
)
def test_wrong_headers_say_what_was_expected(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_idx(data)
    with pytest.raises(DataError, match=reason):
        read_idx(gzip.compress(data))


def test_a_decompression_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(header(10) + bytes(1 << 26), compresslevel=1)
    promise = gzip.compress(header(1 << 27) + bytes(1 << 10))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more bytes"):
            read_idx(bomb)
        with pytest.raises(DataError, match="1024 bytes there"):
            read_idx(promise)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_callers_to_set() -> None:
    np.testing.assert_array_equal(read_idx(PLAIN, limit=24), ARRAY)
    with pytest.raises(DataError, match="1 to 23"):
        read_idx(PLAIN, limit=23)
