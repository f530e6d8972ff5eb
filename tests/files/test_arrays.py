"""Codes of single tensors: the right one is chosen, and it comes back."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paring.files.pare import arrays, planes, varint
from paring.files.pare.code import Code
from paring.files.pare.entropy import Decoder, Encoder
from paring.files.pare.error import PareError
from paring.files.pare.planes import HUFFMAN, RANGE, RAW, Layout


def there_and_back(bits: NDArray[Any]) -> tuple[Code, int]:
    encoder = Encoder()
    code, side = arrays.write(bits, encoder)
    body = encoder.bytes()
    again = Code.read(code.plain(), bits.dtype.itemsize)
    assert again == code
    found = arrays.read(again, bits.shape, bits.dtype, varint.Reader(side), Decoder(body))
    assert found.dtype == bits.dtype
    assert np.array_equal(found, bits)
    return code, len(side) + len(body)


def floats(values: NDArray[Any]) -> NDArray[np.uint32]:
    return values.astype(np.float32).view(np.uint32)


generator = np.random.default_rng(0)
NORMAL = generator.normal(size=(300, 200))


def test_trained_floats_go_by_planes() -> None:
    code, size = there_and_back(floats(NORMAL))
    assert code == Code("planes", planes=(RAW, RAW, RANGE, RANGE), turned=True, moved=3)
    assert size < 0.83 * NORMAL.size * 4


def exponents(values: torch.Tensor) -> float:
    """Bytes of a tensor whose exponents take their entropy and all else is kept: what byte coders of floats can reach."""
    bits = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}[values.dtype]
    counts = torch.frexp(values.float())[1].flatten().add(300).bincount()
    share = counts[counts > 0] / counts.sum()
    return values.numel() * (8 * values.element_size() - bits - float((share * share.log2()).sum())) / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [16_384, 300_000])
def test_floats_take_less_than_the_entropy_of_their_exponents(dtype: torch.dtype, count: int) -> None:
    values = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)
    carrier = torch.int32 if dtype == torch.float32 else torch.int16
    bits = values.view(carrier).numpy().view(np.uint32 if dtype == torch.float32 else np.uint16)
    code, size = there_and_back(bits)
    assert code.kind == "planes"
    assert size < exponents(values) * (1 if count > 100_000 else 1.01)


def test_bfloat16_of_a_layer_takes_ten_and_a_half_bits_a_weight() -> None:
    values = (torch.randn(256, 64, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    _, size = there_and_back(values.view(torch.int16).numpy().view(np.uint16))
    assert 8 * size / values.numel() < 10.65


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_planes_come_back_whatever_they_hold(dtype: type[np.unsignedinteger[Any]]) -> None:
    """Every layout, with highest bytes few and many, and coders of each kind."""
    width = np.dtype(dtype).itemsize
    seen: set[tuple[int, ...]] = set()
    for spread in (0, 3, 40, 100, 200):
        for count in (1, 5, 700, planes._EXACT + 5):
            top = np.minimum(generator.geometric(1 / (1 + spread / 8), count), spread + 1).astype(np.uint64)
            share = generator.random(count) ** 2  # what lies below depends on the highest byte
            low = (np.where(top % np.uint64(2), share, 1 - share) * 0.99 * 2.0 ** (8 * width - 8)).astype(np.uint64)
            flat: NDArray[Any] = (low | top << np.uint64(8 * width - 8)).astype(dtype)
            for given in (flat, (flat >> dtype(1)) | (flat << dtype(8 * width - 1))):
                encoder = Encoder()
                layout, side = planes.write(given, encoder)
                seen.add((layout.turned, layout.moved, *layout.coders))
                assert layout.fits(width)
                reader = varint.Reader(side)
                again = planes.read(layout, count, np.dtype(dtype), reader, Decoder(encoder.bytes()))
                assert np.array_equal(again, given)
                assert not reader.rest()
    assert {coder for layout in seen for coder in layout[2:]} >= {RANGE, HUFFMAN}
    if width > 1:
        assert {moved for turned, moved, *_ in seen if turned} == {0, 1, 2, 3}


def test_damaged_planes_are_refused() -> None:
    flat = (generator.normal(size=70_000) * 0.05).astype(np.float32).view(np.uint32)
    encoder = Encoder()
    layout, side = planes.write(flat, encoder)
    assert layout == Layout((RAW, RAW, HUFFMAN, HUFFMAN), turned=True, moved=3)
    first = side[0]

    def read(side: bytes, count: int = flat.size, layout: Layout = layout) -> None:
        planes.read(layout, count, flat.dtype, varint.Reader(side), Decoder(encoder.bytes()))

    read(side)
    for count in (flat.size - 1, flat.size + 1):  # raw planes end elsewhere, then the streams make no sense
        with pytest.raises(PareError):
            read(side, count)
    for start in (bytes([0]), bytes([255]), bytes([first, 255]), bytes([first + 1, 0])):
        with pytest.raises(PareError):
            read(start + side[len(start) :])
    assert not Layout((RAW, RAW, 3, RANGE)).fits(4)
    assert not Layout((RAW, RANGE), moved=4).fits(2)
    assert not Layout((RAW, RAW), turned=True).fits(2)
    assert not Layout((RANGE,), moved=1).fits(1)


@pytest.mark.parametrize("count", [9, 11])
def test_a_stream_that_is_longer_or_shorter_than_its_plane_is_refused(count: int) -> None:
    packed = zlib.compress(bytes(count), wbits=-15)
    side = varint.put([len(packed)]) + packed
    with pytest.raises(PareError, match="longer or shorter"):
        planes.read(Layout((HUFFMAN,)), 10, np.dtype(np.uint8), varint.Reader(side), Decoder(b""))


def test_random_bits_stay_raw() -> None:
    code, size = there_and_back(generator.integers(1 << 32, size=(100, 100), dtype=np.uint32))
    assert code == Code("raw")
    assert size == 40_000


def test_few_values_go_by_a_table() -> None:
    rounded = np.round(NORMAL) + 0.0
    code, size = there_and_back(floats(rounded))
    assert code.kind == "table"
    assert code.half
    share = np.unique(rounded, return_counts=True)[1] / NORMAL.size
    assert size < 1.02 * -(share * np.log2(share)).sum() * NORMAL.size / 8 + 100


def test_values_that_half_precision_cannot_hold_are_stored_whole() -> None:
    values = np.where(NORMAL > 0, np.float32(0.1), np.float32(1e-20))
    assert not there_and_back(floats(values))[0].half


def test_signs_take_a_bit_each() -> None:
    code, size = there_and_back(np.sign(NORMAL).astype(np.int8).view(np.uint8))
    assert code.values == 2
    assert size < 1.01 * NORMAL.size / 8 + 20


@pytest.mark.parametrize("axis", [0, 1])
def test_pruned_columns_make_classes(axis: int) -> None:
    open_columns = generator.random(NORMAL.shape[axis]) < 0.2
    mask = (open_columns[:, None] if axis == 0 else open_columns[None]) & (generator.random(NORMAL.shape) < 0.5)
    symbols = np.where(mask, np.sign(NORMAL), 0.0)
    code, size = there_and_back(floats(symbols))
    assert (code.axis, code.classes > 1) == (axis, True)
    one_class = 0.9 * 0.1 * NORMAL.size / 8  # below the entropy of independent symbols, 0.57 bits each
    assert size < 0.5 * NORMAL.size / 8
    assert size > one_class


@pytest.mark.parametrize(
    "bits",
    [
        np.zeros((0, 5), np.uint32),
        np.zeros((5, 0, 2), np.uint8),
        np.array(3, np.uint64),
        np.array([7], np.uint16),
        np.full((9, 9), 1 << 60, np.uint64),
        floats(np.array([np.nan, -0.0, 0.0, -0.0, np.nan, 0.0])),
        np.arange(20_000, dtype=np.uint16),
        np.concatenate([np.zeros(1 << 17, np.uint32), np.arange(3000, dtype=np.uint32)]),  # values the sample misses
        np.concatenate([np.zeros(1 << 17, np.uint32), np.arange(9000, dtype=np.uint32)]),
    ],
    ids=str,
)
def test_odd_ones(bits: NDArray[Any]) -> None:
    there_and_back(bits)


def test_varints() -> None:
    values = [0, 1, 127, 128, 300, 1 << 20, (1 << 62) + 5]
    data = varint.put(values)
    assert data[:5].hex() == "00017f8001"
    reader = varint.Reader(data + b"rest")
    assert reader.numbers(len(values)) == values
    assert reader.rest() == b"rest"
    for broken in (b"", b"\x80", b"\xff" * 9 + b"\x01"):
        with pytest.raises(PareError):
            varint.Reader(broken).number()
    with pytest.raises(PareError):
        varint.Reader(b"\x01").numbers(10**9)


def test_planes_of_one_byte_are_runs() -> None:
    """bfloat16 numbers in float32: one plane holds signs alone, one takes nothing and goes by the fast coder."""
    values = (torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    narrow = values.view(torch.int16).numpy().view(np.uint16)
    code, size = there_and_back(values.float().view(torch.int32).numpy().view(np.uint32))
    assert code.planes[:2] == (RANGE, HUFFMAN)
    assert size < 1.01 * there_and_back(narrow)[1]
