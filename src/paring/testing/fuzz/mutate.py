"""Changes of bytes and of JSON; each draws from the `chance` it is given and changes a copy."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

from paring.testing.fuzz import plant

ODD: tuple[Any, ...] = (
    0, 1, 2, 3, -1, 255, 4096, 1 << 20, 1 << 31, 3_000_000_000, 1 << 39, 1 << 63, 10**30, 10**400,
    0.5, -0.0, 1e308, float("nan"), float("inf"), True, False, None,
    "", "x", "0", "weight", "__metadata__", "__class__", "forward", "\udc80", "\x00", "\x1b[31mred\n", "a" * 10_000, "../../x",
    [], [7], [[]], [0, 0], {}, {"": ""}, {"x": [3_000_000_000, []]}, [[3_000_000_000], "float32"], [1 << 62, 1 << 62],
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to three changes: flipped, set, cut, inserted, doubled, moved or filled."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        size = len(found)
        a = chance.randrange(size + 1)
        b = min(size, a + chance.choice((1, 2, 4, 8, 64, size)))
        match chance.randrange(8):
            case 0 | 1 if size:
                found[a % size] ^= 1 << chance.randrange(8)
            case 2 if size:
                found[a % size] = chance.randrange(256)
            case 3:
                del found[a:b]
            case 4:
                found[a:a] = chance.randbytes(chance.choice((1, 4, 64)))
            case 5:
                found[a:a] = found[a:b]
            case 6:
                found[a:b] = bytes([chance.choice((0, 255))]) * (b - a)
            case _:
                found[a : a + 8] = chance.choice((1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)).to_bytes(8, "little")
    return bytes(found)


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four of them set to others, as many as before."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4) if data else 0):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found)


def changed(value: Any, chance: random.Random) -> Any:
    """A copy of lists and dictionaries with one to three places changed, emptied, doubled, swapped or planted."""
    found = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            return any_value(chance)
        node, key = chance.choice(places)
        _change(node, key, places, chance)
    return found


def everywhere(value: Any, every: int = 1) -> Iterator[Any]:
    """Copies of lists and dictionaries with planted code in one place after the other, also as the name of a key.

    every: give one of so many; where this shares no factor with `len(plant.VALUES)`, all ways of planting still come up.
    """
    places = enumerate(_places(value))
    for number, (place, planted) in enumerate(itertools.product(places, plant.VALUES)):
        if number % every == 0:
            yield _planted(value, place[0], planted, as_key=False)
            if isinstance(place[1][0], dict) and isinstance(planted, str):
                yield _planted(value, place[0], planted, as_key=True)


def _planted(value: Any, number: int, planted: Any, as_key: bool) -> Any:
    """A copy with this instead of what is at the place of this number, or instead of its key."""
    found = copy.deepcopy(value)
    node, key = next(itertools.islice(_places(found), number, None))
    if as_key:
        node[planted] = node.pop(key)
    else:
        node[key] = copy.deepcopy(planted)
    return found


def any_value(chance: random.Random) -> Any:
    """An odd value, or one that names planted code."""
    return plant.any_value(chance) if chance.random() < 0.3 else copy.deepcopy(chance.choice(ODD))


def as_text(value: Any, chance: random.Random) -> str:
    """The value as JSON; now and then with brackets without end, a key twice, or a piece missing."""
    text = json.dumps(value)
    if chance.random() > 0.06:
        return text
    at = chance.randrange(len(text) + 1)
    match chance.randrange(5):
        case 0:
            return text[:at] + "[" * 100_000 + text[at:]
        case 1:
            return '{"a":' * 100_000
        case 2:
            return text[:at]
        case 3:
            return text[:at] + "9" * 5000 + text[at:]
        case _:
            return text[:-1] + "," + text[1:]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in nested lists and dictionaries."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _change(node: Any, key: Any, places: list[tuple[Any, Any]], chance: random.Random) -> None:
    old = node[key]
    match chance.randrange(10):
        case 0 | 1:
            del node[key]
        case 2 if isinstance(node, dict):
            node[str(chance.choice(("x", "", "\x1b[2J", "\udc80", "__metadata__", plant.NAME)))] = node.pop(key)
        case 2:
            node.insert(key, copy.deepcopy(old))
        case 3:
            other, there = chance.choice(places)
            node[key] = copy.deepcopy(other[there])
        case 4 if isinstance(node, dict):
            node[f"{key}2"] = copy.deepcopy(old)
        case 5 | 6 if isinstance(old, int) and not isinstance(old, bool):
            node[key] = chance.choice(
                (old + 1, old - 1, -old, 2 * old, old << 30, old / 2 if abs(old) < 1 << 60 else 0.5, str(old))
            )
        case 7:
            node[key] = [old] if chance.random() < 0.5 else {"x": old}
        case _:
            node[key] = any_value(chance)
