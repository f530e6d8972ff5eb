"""Hostile `.pare` files: whatever the bytes, reading ends in tensors or in one `PareError`.

    python -m paring.testing.fuzz_pare --seconds 600

runs atheris (coverage-guided) on headers and sections around which the checksums are right, so that it gets past them.
`broken` makes such files by random changes of a good one; the tests use it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch

from paring.codec import (
    File,
    PareError,
    arrays,
    classes,
    container,
    entropy,
    levels,
    mixed,
    mixing,
    planes,
    varint,
    write,
)
from paring.codec import header as header_
from paring.codec.container import MAGIC, VERSION
from paring.codec.dictionary import DICTIONARY

LARGEST = 1 << 22


def good() -> bytes:
    """A file with a tensor of every kind."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(40, 60, generator=generator)
    smooth = (dense + dense.roll(1, 1) + dense.roll(2, 1)) / 2
    tensors = {
        "mixed": smooth.sign() * (smooth.abs() > 1.2) + 0.0,
        "sparse": smooth * (smooth.abs() > 1.2) + 0.0,
        "rows": dense.sign() * torch.rand(40, 1, generator=generator),
        "grid": (dense[0] * 20).round() * 0.1 + 0.0,
        "classes": (dense * 2).round() * (torch.arange(40) < 9)[:, None] + 0.0,
        "planes": dense,
        "raw": torch.arange(9),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.pare"
        write(path, tensors.items(), {"ties": {}})
        return path.read_bytes()


def taken_apart(data: bytes) -> tuple[Any, list[bytes]]:
    """Header and sections of a good file."""
    (length,) = struct.unpack("<I", data[-8:-4])
    header = json.loads(zlib.decompressobj(-15, DICTIONARY).decompress(data[-8 - length : -8]))
    bodies, at = [], len(MAGIC) + 1
    for section in header["sections"]:
        bodies.append(data[at : at + section["length"]])
        at += section["length"] + 4
    return header, bodies


def forged(text: bytes, bodies: list[bytes]) -> bytes:
    """A file of this header and these sections, with right checksums."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    header = packer.compress(text) + packer.flush()
    start = MAGIC + bytes([VERSION])
    sections = b"".join(body + struct.pack("<I", zlib.crc32(body)) for body in bodies)
    return start + sections + header + struct.pack("<II", len(header), zlib.crc32(header, zlib.crc32(start)))


def broken(data: bytes, seed: int) -> bytes:
    """A good file with a few changes of header and sections, and checksums that are right again."""
    chance = random.Random(seed)
    header, bodies = taken_apart(data)
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.5:
            number = chance.randrange(len(bodies))
            body = bytearray(bodies[number])
            for _ in range(chance.randint(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            bodies[number] = bytes(body)
        else:
            _change(header["sections"], chance)
    return forged(json.dumps(header).encode(), bodies)


def _change(node: Any, chance: random.Random) -> None:
    """Put something else in one place of nested lists and dictionaries."""
    keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.9:
        _change(node[key], chance)
        return
    values: list[Any] = [
        0,
        1,
        2,
        3,
        -1,
        255,
        4096,
        1 << 20,
        1 << 39,
        10**30,
        0.5,
        True,
        False,
        None,
        "",
        "mixed",
        "rows",
        [],
        [7],
        {},
    ]
    node[key] = chance.choice(values)


def attempt(data: bytes, path: Path) -> bool:
    """Read a file of these bytes; whether it gave tensors. Any other error than `PareError` is a bug and goes through."""
    path.write_bytes(data)
    try:
        for _ in File(path, max_bytes=LARGEST).tensors():
            pass
    except PareError:
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Fuzz for a while; atheris stops at the first bug and writes the input that shows it."""
    parser = argparse.ArgumentParser(
        prog="python -m paring.testing.fuzz_pare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=600)
    seconds = parser.parse_args(arguments).seconds
    try:
        import atheris
    except ImportError as error:
        raise ImportError("the fuzzer needs atheris: pip install atheris") from error
    folder = Path(tempfile.mkdtemp(prefix="pare-fuzz-"))
    header, bodies = taken_apart(good())
    for number, section in enumerate(header["sections"]):
        text = json.dumps({"manifest": {}, "sections": [section]}).encode()
        (folder / f"seed-{number}").write_bytes(struct.pack("<H", len(text)) + text + bodies[number])

    def target(data: bytes) -> None:
        if len(data) >= 2:
            (length,) = struct.unpack("<H", data[:2])
            attempt(forged(data[2 : 2 + length], [data[2 + length :]]), folder / "case.pare")

    for module in (arrays, classes, container, entropy, header_, levels, mixed, mixing, planes, varint):
        for found in [module, *(kind for kind in vars(module).values() if inspect.isclass(kind))]:
            for function in vars(found).values():
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], str(folder), f"-max_total_time={seconds}", "-max_len=20000", "-timeout=5"], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
