"""The decoder of FORMAT.md in plain integers: the naive twin of `paring.files.pare.entropy.Decoder`."""

from __future__ import annotations

import struct
from collections.abc import Sequence

WHOLE = 1 << 64


def cuts(table: Sequence[int]) -> list[int]:
    """c_0 .. c_k: where the interval of each symbol begins, of 2^24."""
    size, total, before, found = len(table), sum(table), 0, []
    for index, frequency in enumerate(table):
        found.append(index + int(float(before) * ((2.0**24 - size) / float(total))))
        before += frequency
    return [*found, 1 << 24]


class RangeDecoder:
    """One symbol at a time."""

    def __init__(self, data: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.low, self.range = 0, WHOLE - 1
        self.point = self._word() << 32 | self._word()

    def _word(self) -> int:
        return self.words.pop(0) if self.words else 0

    def symbol(self, table: Sequence[int]) -> int:
        if len(table) == 1:
            return 0
        begins = cuts(table)
        scale = self.range >> 24
        quantile = ((self.point - self.low) % WHOLE) // scale
        found = max(i for i in range(len(table)) if begins[i] <= quantile)
        self.low = (self.low + scale * begins[found]) % WHOLE
        self.range = scale * (begins[found + 1] - begins[found])
        if self.range < 1 << 32:
            self.low = (self.low << 32) % WHOLE
            self.range <<= 32
            self.point = (self.point << 32) % WHOLE | self._word()
        return found

    def adaptive(self, count: int, alphabet: int) -> list[int]:
        out: list[int] = []
        end = 32
        while len(out) < count:
            table = [2 * out.count(i) + 1 for i in range(alphabet)]
            while len(out) < min(end, count):
                out.append(self.symbol(table))
            end *= 2
        return out
