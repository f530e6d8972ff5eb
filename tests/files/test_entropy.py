"""The entropy coder against its plain twin and against the entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.files.pare.entropy import (
    LARGEST_SUM,
    WHOLE,
    Decoder,
    Encoder,
    adapted,
    adaptive_bits,
    binary_bits,
    blocks,
    entropy,
    frequencies,
    intervals,
    static_bits,
)
from paring.files.pare.error import PareError
from tests.reference.range_decoder import RangeDecoder, cuts


def draw(seed: int, alphabet: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice(alphabet, size=count, p=generator.dirichlet(np.full(alphabet, 0.3))).astype(np.int32)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 300))
def test_plain_decoder_reads_what_is_written(seed: int, alphabet: int, count: int) -> None:
    one, two = draw(seed, alphabet, count), draw(seed + 1, alphabet, count)
    table = frequencies(one, alphabet)
    encoder = Encoder()
    encoder.static(one, table)
    encoder.adaptive(two, alphabet)
    code = encoder.bytes()
    fast = Decoder(code)
    assert np.array_equal(fast.static(count, table), one)
    assert np.array_equal(fast.adaptive(count, alphabet), two)
    slow = RangeDecoder(code)
    assert [slow.symbol(table.tolist()) for _ in range(count)] == one.tolist()
    assert slow.adaptive(count, alphabet) == two.tolist()
    ideal = (static_bits(np.bincount(one, minlength=alphabet), table) + adaptive_bits(two, alphabet)) / 8
    measured = Decoder(code, measure=True)
    measured.static(count, table)
    measured.adaptive(count, alphabet)
    assert measured.bits / 8 == pytest.approx(ideal)
    assert ideal - 1 <= len(code) <= ideal + 12


def test_first_bytes_never_change() -> None:
    encoder = Encoder()
    encoder.static(np.array([0, 1, 2, 1, 0, 0, 0, 1], dtype=np.int32), np.array([5, 2, 1]))
    encoder.adaptive(np.array([3, 3, 3, 0, 1] * 20, dtype=np.int32), 4)
    assert encoder.bytes().hex() == "0116648a420ebcfe9903e5ae1eed21bcbb702358771b08a6"


@pytest.mark.parametrize("alphabet", [2, 3, 16, 256])
def test_within_a_percent_of_the_entropy(alphabet: int) -> None:
    symbols = draw(3, alphabet, 20_000)
    bits = entropy(symbols, alphabet) * len(symbols)
    for adaptive in (False, True):
        encoder = Encoder()
        if adaptive:
            encoder.adaptive(symbols, alphabet)
        else:
            encoder.static(symbols, frequencies(symbols, alphabet))
        margin = 1.01 if not adaptive else 1.01 + alphabet * 14 / bits
        assert 8 * len(encoder.bytes()) <= bits * margin + 64


def test_bits_with_chances_of_their_own_are_within_a_percent_of_the_entropy() -> None:
    generator = np.random.default_rng(0)
    ones = generator.integers(256, WHOLE - 256, size=20_000)
    symbols = (generator.random(20_000) * WHOLE < ones).astype(np.int32)
    encoder = Encoder()
    encoder.binary(symbols, ones / WHOLE)
    code = encoder.bytes()
    share = np.where(symbols, ones, WHOLE - ones) / WHOLE
    assert binary_bits(symbols, ones / WHOLE) == pytest.approx(-np.log2(share).sum(), rel=1e-3)
    assert 8 * len(code) <= 1.01 * -np.log2(share).sum() + 64
    fast, slow = Decoder(code, measure=True), RangeDecoder(code)
    assert np.array_equal(fast.binary(ones / WHOLE), symbols)
    assert fast.bits == pytest.approx(8 * len(code), abs=100)
    assert [slow.symbol([WHOLE - one, one]) for one in ones[:500].tolist()] == symbols[:500].tolist()


def test_intervals_are_those_of_the_format() -> None:
    for table in ([1, 1], [5, 2, 1], [1, LARGEST_SUM - 1], [3] * 4096):
        assert intervals(np.array(table, dtype=np.int64)).tolist() == cuts(table)


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_tables_of_many_symbols_sum_to_less_than_2_to_the_31(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for total in (1 << 28, (1 << 30) - size - 1, 1 << 30, (1 << 31) - size - 1, 1 << 31, 1 << 40):
        counts = np.zeros(size, dtype=np.int64)
        counts[0] = total
        monkeypatch.setattr(np, "bincount", lambda symbols, minlength, counts=counts: counts)
        for found, factor in ((frequencies(np.zeros(0, dtype=np.int32), size), 1), (adapted(counts), 2)):
            assert found.sum() <= LARGEST_SUM
            assert found.min() >= 1
            assert found.sum() >= min(factor * total, LARGEST_SUM // 4), "no more is given away than has to be"


def test_a_chance_is_a_multiple_of_2_to_the_minus_24() -> None:
    assert (WHOLE, LARGEST_SUM) == (1 << 24, (1 << 31) - 1)
    assert intervals(np.array([1, 1])).tolist() == [0, 1 << 23, 1 << 24]
    assert binary_bits(np.array([1, 0], dtype=np.int32), np.array([2.0**-24, 2.0**-24])) == pytest.approx(24, abs=1e-3)


def test_lengths_of_the_shortest_codes() -> None:
    def bits(counts: list[int], table: list[int]) -> float:
        return static_bits(np.array(counts), np.array(table))

    assert bits([1, 0], [1, 1]) == pytest.approx(1, abs=1e-3)
    assert bits([3, 1], [3, 1]) == pytest.approx(8 - 3 * np.log2(3), abs=1e-3)
    assert bits([0, 0], [3, 1]) == bits([7], [7]) == bits([0], [1]) == 0


def test_no_bit_takes_no_bytes_and_one_bit_is_read_back() -> None:
    for symbols in ([], [0], [1]):
        written, chances = np.array(symbols, dtype=np.int32), np.full(len(symbols), 0.5)
        encoder = Encoder()
        encoder.binary(written, chances)
        found = Decoder(encoder.bytes()).binary(chances)
        assert (len(encoder.bytes()) > 0) == (len(symbols) > 0)
        assert found.dtype == np.int32
        assert np.array_equal(found, written)


def test_adapted_tables_are_halved_no_sooner_than_they_have_to_be_and_rare_symbols_have_entropy() -> None:
    assert adapted(np.array([(1 << 30) - 1])).tolist() == [LARGEST_SUM]
    assert entropy(np.array([0, 0, 1, 2], dtype=np.int32), 3) == pytest.approx(1.5)


def test_frequencies_stay_below_the_largest_sum() -> None:
    counts = frequencies(np.zeros(10, dtype=np.int32), 3)
    assert counts.tolist() == [10, 1, 1]
    assert list(blocks(200)) == [(0, 32), (32, 64), (64, 128), (128, 200)]
    assert list(blocks(0)) == []


def test_a_damaged_code_is_refused() -> None:
    with pytest.raises(PareError, match="whole words"):
        Decoder(b"abc")
    table = np.array([1, 10**9])
    with pytest.raises(PareError, match="damaged"):
        Decoder(b"\xff" * 16).static(100, table)
    for seed in range(50):  # random words are some code or other
        assert len(Decoder(np.random.default_rng(seed).bytes(16)).static(100, table)) == 100
