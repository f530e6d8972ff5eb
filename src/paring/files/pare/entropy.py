"""Entropy coding of integer symbols, from integer frequency tables only, so that every machine makes the same bytes.

The coder is the range coder of `constriction` (32-bit words, 64-bit state, probabilities of 24 bits). A symbol i of an
alphabet with the frequencies f_0 .. f_{k-1} (positive integers, sum F < 2^31) owns the interval from c_i to c_{i+1} of
2^24, where

    c_i = i + floor( (f_0 + ... + f_{i-1}) * ((2^24 - k) / F) )        c_k = 2^24

computed in IEEE double precision, as written. FORMAT.md spells out the decoder; a plain Python twin of it is in the tests.

Three models:

* static: the table of frequencies is stored, then all symbols follow;
* adaptive: nothing is stored. Symbols come in blocks of 32, 32, 64, 128, 256, ... (each as long as all before it); the
  frequencies of a block are 2 n_i + 1, with n_i the occurrences so far;
* binary: two symbols, and each position has its own frequencies 2^24 - P and P (see `mixing`). Lengths are sums of integer
  logarithms (`logs`), so that what is chosen by length is chosen alike everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paring.files.pare.error import PareError
from paring.files.pare.logs import UNIT, log2s

Symbols = NDArray[np.int32]
Chances = NDArray[np.float64]
LARGEST_SUM = (1 << 31) - 1
FIRST_BLOCK = 32
WHOLE = 1 << 24


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError("entropy coding needs constriction: pip install 'paring[codec]'") from error
    return constriction.stream


def frequencies(symbols: Symbols, alphabet: int) -> NDArray[np.int64]:
    """How often each symbol occurs, at least 1 for each and with a sum below 2^31 (rounded down when it is larger)."""
    counts = np.bincount(symbols, minlength=alphabet).astype(np.int64)
    shift = max(0, int(counts.sum() + alphabet).bit_length() - 31)
    found: NDArray[np.int64] = np.maximum(counts >> shift, 1)
    return found


class Encoder:
    """Symbols in, bytes out. Calls follow each other in one code; the decoder makes the same calls."""

    def __init__(self) -> None:
        self._coder: Any = None

    def static(self, symbols: Symbols, table: NDArray[np.int64]) -> None:
        """Code the symbols under one table."""
        if len(symbols) and len(table) > 1:
            self._encode(symbols, _model(table))

    def adaptive(self, symbols: Symbols, alphabet: int) -> None:
        """Code the symbols under tables that follow from the symbols before."""
        counts = np.zeros(alphabet, dtype=np.int64)
        for start, stop in blocks(len(symbols)):
            self.static(symbols[start:stop], adapted(counts))
            counts += np.bincount(symbols[start:stop], minlength=alphabet)

    def binary(self, symbols: Symbols, chances: Chances) -> None:
        """Code zeros and ones, each with its own probability of being one, a multiple of 2^-24."""
        if len(symbols):
            self._encode(symbols, _bernoulli(), chances)

    def bytes(self) -> bytes:
        """The code: whole words, little-endian."""
        return b"" if self._coder is None else self._coder.get_compressed().astype("<u4").tobytes()

    def _encode(self, symbols: Symbols, *model: Any) -> None:
        if self._coder is None:
            self._coder = _constriction().queue.RangeEncoder()
        self._coder.encode(np.ascontiguousarray(symbols, dtype=np.int32), *model)


class Decoder:
    """The inverse of `Encoder`.

    Args:
        data: the code.
        measure: keep `bits`, the ideal length of the code of all symbols read so far.

    Raises:
        PareError: the bytes are no such code.
    """

    def __init__(self, data: bytes, measure: bool = False) -> None:
        if len(data) % 4:
            raise PareError(f"a code of {len(data)} bytes is not made of whole words")
        self._decoder = _constriction().queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
        self.bits, self._measure = 0.0, measure

    def static(self, count: int, table: NDArray[np.int64]) -> Symbols:
        """`count` symbols that were coded under this table."""
        if count == 0 or len(table) == 1:
            return np.zeros(count, dtype=np.int32)
        found = self._decode(_model(table), count)
        if self._measure:
            self.bits += static_bits(np.bincount(found, minlength=len(table)), table)
        return found

    def adaptive(self, count: int, alphabet: int) -> Symbols:
        """`count` symbols that were coded adaptively."""
        counts = np.zeros(alphabet, dtype=np.int64)
        out = np.empty(count, dtype=np.int32)
        for start, stop in blocks(count):
            out[start:stop] = self.static(stop - start, adapted(counts))
            counts += np.bincount(out[start:stop], minlength=alphabet)
        return out

    def binary(self, chances: Chances) -> Symbols:
        """Zeros and ones that were coded under these probabilities."""
        if len(chances) == 0:
            return np.zeros(0, dtype=np.int32)
        found = self._decode(_bernoulli(), chances)
        if self._measure:
            self.bits += binary_bits(found, chances)
        return found

    def _decode(self, *model: Any) -> Symbols:
        try:
            found: Symbols = self._decoder.decode(*model)
        except (AssertionError, ValueError) as error:
            raise PareError(f"the code is damaged: {error}") from error
        return found


def binary_bits(symbols: Symbols, chances: Chances) -> float:
    """Length in bits of the code of zeros and ones under these probabilities of a one."""
    ones = (chances * WHOLE).astype(np.int64)
    return float((24 * UNIT - log2s(np.where(symbols, ones, WHOLE - ones))).sum()) / UNIT


def static_bits(counts: NDArray[np.int64], table: NDArray[np.int64]) -> float:
    """Length in bits of the code of symbols that occur so often, under this table."""
    if len(table) == 1 or counts.sum() == 0:
        return 0.0
    return float((counts * (24 * UNIT - log2s(np.diff(intervals(table))))).sum()) / UNIT


def adaptive_bits(symbols: Symbols, alphabet: int) -> float:
    """Length in bits of the adaptive code."""
    counts, total = np.zeros(alphabet, dtype=np.int64), 0.0
    for start, stop in blocks(len(symbols)):
        fresh = np.bincount(symbols[start:stop], minlength=alphabet)
        total += static_bits(fresh, adapted(counts))
        counts += fresh
    return total


def intervals(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """c_0 .. c_k of the module's docstring."""
    size = len(table)
    before = np.concatenate([[0], np.cumsum(table)])[:-1].astype(np.float64)
    cuts = np.arange(size) + np.floor(before * ((2.0**24 - size) / float(table.sum()))).astype(np.int64)
    return np.concatenate([cuts, [1 << 24]])


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """Start and end of the blocks of the adaptive model."""
    start, stop = 0, min(FIRST_BLOCK, count)
    while start < count:
        yield start, stop
        start, stop = stop, min(2 * stop, count)


def entropy(symbols: Symbols, alphabet: int) -> float:
    """Bits per symbol of the best static model of independent symbols, its table not counted."""
    counts = np.bincount(symbols, minlength=alphabet).astype(np.float64)
    share = counts[counts > 0] / max(1, len(symbols))
    return float(-(share * np.log2(share)).sum())


def adapted(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table that follows from the occurrences so far."""
    shift = max(0, int(2 * counts.sum() + len(counts)).bit_length() - 31)
    found: NDArray[np.int64] = np.maximum((2 * counts + 1) >> shift, 1)
    return found


def _model(table: NDArray[np.int64]) -> Any:
    return _constriction().model.Categorical(table.astype(np.float64), perfect=False)


@functools.cache
def _bernoulli() -> Any:
    return _constriction().model.Bernoulli(perfect=False)
