"""`.pare` files: changed bytes, headers and sections, under checksums that fit them."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.files import File, PareError, pack, unpack, write
from paring.files.pare.container import MAGIC, VERSION
from paring.files.pare.dictionary import DICTIONARY
from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.fuzz_nets import examples
from paring.testing.fuzz.mutate import as_text, changed, damaged, everywhere
from paring.testing.fuzz.network_format import held

FILE = "net.pare"
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
        "groups": _in_groups(dense[:, :32] * torch.rand(40, 1, generator=generator)),
        "planes": dense,
        "bfloat16": torch.randn(3000, generator=generator).bfloat16(),
        "raw": torch.arange(9),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.pare"
        write(path, tensors.items(), {"ties": {}})
        return path.read_bytes()


def _in_groups(dense: torch.Tensor) -> torch.Tensor:
    """Four bits with a scale and a float offset for 32 entries."""
    least, most = dense.amin(1, keepdim=True), dense.amax(1, keepdim=True)
    scale, offset = ((most - least) / 15).half().float(), least.half().float()
    return ((dense - least) / scale).round() * scale + offset + 0.0


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


class Pare(Format):
    """Files of tensors of every kind, and of networks."""

    name = "pare"
    errors = (PareError,)

    def seeds(self) -> list[Seed]:
        found = [Seed("tensors", {FILE: good()}, _tensors)]
        for one in examples():
            with tempfile.TemporaryDirectory() as folder:
                pack(one.net, Path(folder) / FILE)
                data = (Path(folder) / FILE).read_bytes()
            found.append(Seed(one.name, {FILE: data}, _reading(one.factory), one.weight))
            found.append(
                Seed(f"{one.name}, its tensors", {FILE: data}, lambda folder: unpack(None, folder / FILE), 0.2)
            )
        return found

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        data = seed.files[FILE]
        header, bodies = taken_apart(data)
        match chance.randrange(8):
            case 0 | 1:
                return Case({FILE: damaged(data, chance)}, forged=False)
            case 2:
                bodies = _damaged(bodies, chance)
            case 3:
                bodies, header = _damaged(bodies, chance), changed(header, chance)
            case 4:
                text = damaged(json.dumps(header).encode(), chance)
                return Case({FILE: forged(text, bodies)}, forged=True)
            case 5:
                header["sections"] = changed(header["sections"], chance)
            case 6:
                header = changed(header, chance)
            case _:
                header["manifest"] = changed(header["manifest"], chance)
        return Case({FILE: forged(as_text(header, chance).encode(), bodies)}, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        header, bodies = taken_apart(seed.files[FILE])
        for one in everywhere(header, every):
            yield Case({FILE: forged(json.dumps(one).encode(), bodies)}, forged=True)


def _damaged(bodies: list[bytes], chance: random.Random) -> list[bytes]:
    number = chance.randrange(len(bodies))
    return [damaged(body, chance) if i == number else body for i, body in enumerate(bodies)]


def _tensors(folder: Path) -> object:
    return list(File(folder / FILE, max_bytes=LARGEST).tensors())


def _reading(factory: Callable[[], nn.Module]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        return held(unpack(factory, folder / FILE))

    return read
