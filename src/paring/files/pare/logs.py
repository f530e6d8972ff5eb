"""Logarithms in exact integer arithmetic, so that every choice that rests on them is the same on every machine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 1 << 16
_BITS = 12
_MANTISSA = np.array([round(UNIT * math.log2(1 + m / (1 << _BITS))) for m in range(1 << _BITS)], dtype=np.int64)
_LIST: list[int] = _MANTISSA.tolist()


def log2s(values: NDArray[Any]) -> NDArray[np.int64]:
    """2^16 log2 of positive integers below 2^53, from their leading 13 bits."""
    whole = values.astype(np.int64)
    _, high = np.frexp(whole.astype(np.float64))
    exponent = high.astype(np.int64) - 1
    lead = np.where(
        exponent > _BITS, whole >> np.maximum(exponent - _BITS, 0), whole << np.maximum(_BITS - exponent, 0)
    )
    found: NDArray[np.int64] = UNIT * exponent + _MANTISSA[lead & ((1 << _BITS) - 1)]
    return found


def log2(value: int) -> int:
    """The same for one positive integer of any size."""
    exponent = value.bit_length() - 1
    lead = value >> (exponent - _BITS) if exponent > _BITS else value << (_BITS - exponent)
    return UNIT * exponent + _LIST[lead & ((1 << _BITS) - 1)]


def information(counts: NDArray[np.int64]) -> int:
    """Bits of the best static codes of symbols that occur so often, (..., alphabet), all together; below 2^31 symbols."""
    totals = counts.sum(-1)
    whole = (totals * log2s(np.maximum(totals, 1))).sum()
    own = (counts * log2s(np.maximum(counts, 1))).sum()
    return int(whole - own) // UNIT
