"""Bits in words and back, by hand and at random."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from paring.bits.words import ones, packed, packed_weights, unpacked, unpacked_weights, words_for


def test_by_hand() -> None:
    bits = torch.zeros(2, 66, dtype=torch.bool)
    bits[0, 0] = bits[0, 3] = bits[1, 63] = bits[1, 65] = True
    assert packed(bits).tolist() == [[0b1001, 0], [-(2**63), 0b10]]
    assert ones(packed(bits)).tolist() == [[2, 0], [1, 1]]


@given(st.integers(1, 200), st.integers(0, 3), st.integers(0, 2**31))
def test_round_trip(count: int, rows: int, seed: int) -> None:
    bits = torch.rand(rows, count, generator=torch.Generator().manual_seed(seed)) > 0.5
    words = packed(bits)
    assert words.shape == (rows, words_for(count))
    assert torch.equal(unpacked(words, count), bits)
    assert torch.equal(ones(words).sum(1), bits.sum(1)), "what lies beyond the bits is 0"


@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.sampled_from([(1, 1), (2, 3)]), st.integers(0, 2**31)
)
def test_weights_round_trip(groups: int, filters: int, channels: int, kernel: tuple[int, int], seed: int) -> None:
    shape = (groups * filters, channels, *kernel)
    positive = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    words = packed_weights(positive, groups)
    assert words.shape == (groups, words_for(filters), kernel[0] * kernel[1] * words_for(channels), 64)
    assert torch.equal(unpacked_weights(words, filters, channels, kernel), positive)
    assert int(ones(words).sum()) == int(positive.sum())
