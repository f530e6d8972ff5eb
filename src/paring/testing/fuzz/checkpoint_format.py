"""Checkpoints: changed bytes, headers and tensors, under a digest that fits them; read as a training that goes on does."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.core import Method, Stack
from paring.core.state_file import MAGIC
from paring.data import Dataset, Split
from paring.methods import L0, Budget, Dense, Shrink
from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.mutate import as_text, changed, damaged, everywhere
from paring.train import CHECKPOINT, CheckpointError, Recipe, Trainer, checkpoint

_DIGEST = hashlib.sha256().digest_size
_START = len(MAGIC) + 8
_SHRINKING = Stack(
    L0(price=Budget(params=0.5), at="units", hold=0.3), Shrink(every=1, multiple_of=1, saving=0.0, measure=False)
)


class Checkpoint(Format):
    """The newest checkpoint of a dense training with Adam, and of one whose network has shrunk, with SGD and an average."""

    name = "checkpoint"
    errors = (CheckpointError,)

    def seeds(self) -> list[Seed]:
        return [
            _seed("dense", Dense(), Recipe(epochs=2, batch=20)),
            _seed("shrunk", _SHRINKING, Recipe(epochs=2, batch=10, optimizer="sgd", lr=0.05, ema=0.9), 0.3),
        ]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        data = seed.files[CHECKPOINT]
        header, body = taken_apart(data)
        match chance.randrange(8):
            case 0 | 1:
                return Case({CHECKPOINT: damaged(data, chance)}, forged=False)
            case 2:
                text = damaged(json.dumps(header).encode(), chance)
                return Case({CHECKPOINT: signed(text, body)}, forged=True)
            case 3:
                body = damaged(body, chance)
            case 4:
                header["tensors"] = changed(header["tensors"], chance)
            case 5:
                header = changed(header, chance)
            case _:
                header["state"] = changed(header["state"], chance)
        return Case({CHECKPOINT: signed(as_text(header, chance).encode(), body)}, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        header, body = taken_apart(seed.files[CHECKPOINT])
        for found in everywhere(header, every):
            yield Case({CHECKPOINT: signed(json.dumps(found).encode(), body)}, forged=True)


def taken_apart(data: bytes) -> tuple[Any, bytes]:
    """The header, and the bytes of the tensors."""
    (length,) = struct.unpack("<Q", data[len(MAGIC) : _START])
    return json.loads(data[_START : _START + length]), data[_START + length : -_DIGEST]


def signed(text: bytes, body: bytes) -> bytes:
    """The file of this header and these bytes, with the digest that fits."""
    data = MAGIC + struct.pack("<Q", len(text)) + text + body
    return data + hashlib.sha256(data).digest()


def _seed(name: str, method: Method, recipe: Recipe, weight: float = 1.0) -> Seed:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        training = Trainer(_network(), method, _data(), recipe, Path(folder))
        training.begin()
        while not training.done:
            training.train_epoch()
        data = (Path(folder) / CHECKPOINT).read_bytes()
        waiting = Trainer(_network(), method, _data(), recipe, None)
        waiting.begin()
    return Seed(name, {CHECKPOINT: data}, _reading(waiting), weight)


def _reading(waiting: Trainer) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        found = checkpoint.load(folder / CHECKPOINT, waiting._check_state)
        return copy.copy(found[0]) if found is not None else None

    return read


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))


def _data() -> Dataset:
    draw = torch.Generator().manual_seed(0)
    train, validation, test = (Split(torch.randn(n, 6, generator=draw), torch.arange(n) % 3) for n in (40, 9, 9))
    return Dataset("noise", train, validation, test, 3, (1, 1, 6))
