"""What benchmarks share: what was asked for, and the results file that grows row by row."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paring.cli.results import Results, load


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a benchmark.

    Args:
        results: folder of results files.
        repeats: paired measurements.
        only: measure only the rows whose name contains this text.
        again: measure also what the results file holds already.
        epochs: epochs of training, for benchmarks that train; 0 takes the benchmark's own number.
        seeds: seeds 0 to seeds − 1, for benchmarks that train; 0 takes the benchmark's own number.
        runs: folder of checkpoints, for benchmarks that train.
        nncodec: a Python that has NNCodec, for the benchmark of coders.
    """

    results: Path
    repeats: int
    only: str = ""
    again: bool = False
    epochs: int = 0
    seeds: int = 0
    runs: Path = Path("runs")
    nncodec: Path | None = None


@dataclass(frozen=True)
class Bench:
    """One benchmark: a line for `--help`, the default number of paired measurements, what runs it, and its options.

    trains: it knows `--epochs` and `--seeds`.
    """

    about: str
    repeats: int
    run: Callable[[Asked], Path]
    trains: bool = False


class Book:
    """A results file to which a benchmark adds; what is in it is not measured again unless asked."""

    def __init__(self, asked: Asked, name: str) -> None:
        self.asked = asked
        self.name = name
        self.path = asked.results / f"{name}.json"

    def wants(self, run: str) -> bool:
        """Whether the row with this name is to be measured."""
        if self.asked.only not in run:
            return False
        return self.asked.again or run not in {row.get("run") for row in self._found().rows}

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a measured row into the file as it is now (another process may be adding to it)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f".{self.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            told = {"threads": torch.get_num_threads(), "source": "measured"}
            self._found().merge({**row, **told}).save(self.path)

    def close(self) -> Path:
        """The file, written even if nothing was measured."""
        self._found().save(self.path)
        return self.path

    def _found(self) -> Results:
        command = f"python -m evidence bench {self.name}"
        return replace(load(self.path), command=command) if self.path.exists() else Results(self.name, command)
