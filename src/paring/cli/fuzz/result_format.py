"""`result.json`: of an experiment, of the demo and of `paring prune`, read as the commands do before anything is built."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paring.cli.experiment import RESULT
from paring.cli.prune_result import read_pruned, summary
from paring.cli.reading import RunError, architecture_of, read_result
from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.mutate import as_text, changed, damaged, everywhere

ROW: dict[str, Any] = {
    "run": "51fef7dfdce2", "model": "lenet_300_100", "data": "digits", "shape": [1, 8, 8], "classes": 10, "method": "l0",
    "seed": 1, "epochs": 2, "architecture": "40-30-20", "error": 3.25, "train_error": 1.5, "validation_error": None,
    "parameters": 2100, "macs": 2050.0, "adds": 2040.0, "nonzeros": 2090, "bytes": 9000, "density": 0.04, "ratio": 24.1,
    "dense_parameters": 50610, "dense_macs": 50200, "support_parameters": 2100.0, "expected_macs": 2300.5,
    "layers": {"fc1": {"density": 0.1, "macs": 12.0}}, "rounds": [], "notes": ["a note"], "train_seconds": 1.25, "threads": 1, "source": "measured",
}  # fmt: skip
DEMO: dict[str, Any] = {
    "model": "lenet_300_100", "data": "digits", "shape": [1, 8, 8], "classes": 10, "seed": 0, "method": "L0(...)",
    "dense_parameters": 50610, "dense_macs": 50200, "max_abs_diff": 1e-6, "tolerance": 1e-5, "torch": "2", "python": "3",
    "dense": {"error": 1.5, "parameters": 50610, "macs": 50200, "nonzeros": 50600, "bytes": 203000, "train_seconds": 3.0},
    "small": {"error": 1.5, "parameters": 7579, "macs": 7456, "nonzeros": 7579, "bytes": 31000, "latency_ms": 0.1},
    "speed_latency_ms": {"ratio": 1.4, "by": "the clock", "low": 1.3, "high": 1.5}, "speed_latency_128_ms": {"ratio": None, "by": "CPU"},
}  # fmt: skip
PRUNED: dict[str, Any] = {
    "run": "51fef7dfdce2", "seed": 0, "epochs": 1, "settings": {"sizes": ["macs 0.5"], "at": "units"}, "model": "Sequential",
    "data": "job.py", "method": "prune", "dense": {"loss": 0.11, "metric": 96.5, "parameters": 9978, "macs": 88064, "bytes": 40300},
    "dense_parameters": 9978, "dense_macs": 88064, "parameters": 4772, "macs": 42880, "bytes": 21200, "train_seconds": 1.8,
    "networks": [
        {"size": "macs 0.5", "file": "small.safetensors", "loss": 0.1, "metric": None, "parameters": 4772, "macs": 42880,
         "bytes": 19000, "file_bytes": 21200, "search_seconds": 2.5, "train_seconds": 1.8, "notes": ["a note"]},
    ],
    "widths": {"0": [16, 14], "3": [32, 16]}, "notes": ["a note"], "threads": 1, "torch": "2", "source": "measured",
}  # fmt: skip


class Result(Format):
    """Results: changed bytes and values. There is no checksum, so other numbers are as good."""

    name = "result"
    errors = (RunError,)

    def seeds(self) -> list[Seed]:
        of_training = [
            Seed(name, {RESULT: json.dumps(row).encode()}, _read) for name, row in (("run", ROW), ("demo", DEMO))
        ]
        return [*of_training, Seed("prune", {RESULT: json.dumps(PRUNED).encode()}, _read_pruned)]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        return Case({RESULT: changed_json(seed.files[RESULT], chance)}, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        return planted_json(seed, RESULT, every)


def planted_json(seed: Seed, name: str, every: int) -> Iterator[Case]:
    """The files of a seed with planted code in one field after the other of a JSON file; fewer of what is slow to read."""
    every *= 1 if seed.weight == 1 else 23
    for found in everywhere(json.loads(seed.files[name]), every):
        yield Case({**seed.files, name: json.dumps(found).encode()}, forged=True)


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON file with other bytes, or with something else in it."""
    if chance.random() < 0.2:
        return damaged(data, chance)
    return as_text(changed(json.loads(data), chance), chance).encode()


def _read(folder: Path) -> object:
    row = read_result(folder / RESULT)
    return row, None if row is None else architecture_of(row, folder / RESULT)


def _read_pruned(folder: Path) -> object:
    row = read_pruned(folder)
    return row, None if row is None else summary(row, folder)
