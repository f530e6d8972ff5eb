"""Codes of single tensors: the right one is chosen, and it comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paring.files.pare import arrays, varint
from paring.files.pare.arrays import Code
from paring.files.pare.entropy import Decoder, Encoder
from paring.files.pare.error import PareError


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
    assert code == Code("planes", planes=(False, False, False, True))
    assert size < 0.9 * NORMAL.size * 4


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
