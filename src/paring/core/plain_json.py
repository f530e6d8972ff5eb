"""JSON from files that anybody may have written: bounded before it is parsed, so that a small file takes little memory.

A value of JSON takes up to a hundred bytes in Python and may take two in the text. So what could become a value is
counted first: commas, colons and opening brackets.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any

VALUES = 1 << 20  # at most; about a hundred megabytes in the worst case
MANY = 1 << 21  # in descriptions of networks: some hundred thousand tensors, or two million units that are gone
DEPTH = 100


class JSONError(ValueError):
    """Text that is no JSON, or more than is read; the message says which, and where it comes from is the caller's to add."""


def parsed(text: str | bytes, values: int = VALUES) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 when bytes.
        values: how many commas, colons and opening brackets there may be.

    Raises:
        JSONError: it is damaged, holds NaN or Infinity, a key twice, too many values, or is nested more than `DEPTH` deep.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        if size(text) > values:
            raise JSONError(f"more than {values:,} values")
        found = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except JSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise JSONError(f"no JSON that can be read ({error})") from error
    if _deep(found, DEPTH):
        raise JSONError(f"nested more than {DEPTH} deep")
    return found


def size(text: str) -> int:
    """How many values the text may have, at most."""
    return sum(map(text.count, ",:[{"))


def _no_constant(name: str) -> float:
    raise JSONError(f"{name} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JSONError(f"the key {twice[:100]!r} is there twice")
    return found


def _deep(value: Any, left: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(one, dict | list) and (left == 0 or _deep(one, left - 1)) for one in inside)


def is_number(value: Any) -> bool:
    """Whether this is a number that arithmetic can use: no truth value, not NaN, and not beyond 1e300 either way."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_count(value: Any, least: int = 0) -> bool:
    """Whether this is a whole number, at least `least` and below 2 ** 48."""
    return type(value) is int and least <= value < 1 << 48


def shown(value: Any) -> str:
    """A value from a file for a message: short, and nothing that a terminal takes for a command."""
    return reprlib.repr(value)
