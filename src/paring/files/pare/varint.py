"""Unsigned integers in as few bytes as they need: seven bits a byte, lowest first, the high bit says that more follow."""

from __future__ import annotations

from collections.abc import Iterable

from paring.files.pare.error import PareError


def put(values: Iterable[int]) -> bytes:
    """Each value in turn."""
    out = bytearray()
    for value in values:
        rest = int(value)
        while rest >= 128:
            out.append(rest & 127 | 128)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def unsigned(value: int) -> int:
    """A signed number as an unsigned one: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    return 2 * value if value >= 0 else -2 * value - 1


def signed(value: int) -> int:
    """The inverse of `unsigned`."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


class Reader:
    """Takes values and raw bytes from the front of a buffer.

    Attributes:
        at: bytes taken so far.

    Raises:
        PareError: the buffer ends too early, or a number is longer than 63 bits.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = memoryview(data), 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count < 0 or self.at + count > len(self._data):
            raise PareError(f"{count} bytes are missing at the end of a section")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def number(self) -> int:
        """The next number."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 56:
                raise PareError("a number in the file is too long")

    def numbers(self, count: int) -> list[int]:
        """The next `count` numbers."""
        if count > len(self._data) - self.at:
            raise PareError(f"{count} numbers are missing at the end of a section")
        return [self.number() for _ in range(count)]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self.at)
