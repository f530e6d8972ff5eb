"""What the workers of the sweep tests do: importable by other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.cli.experiment import Experiment
from paring.cli.sweep import Processes, sweep
from paring.core import Clock, Method
from paring.train import Recipe

STEPS = 8  # per epoch: 1438 examples in batches of 200


@dataclass(frozen=True)
class Logged(Method):
    """Dense training that writes a line "tag step pid" for every step, and may be killed on the way, once.

    Args:
        log: file of the lines.
        tag: tells trials apart.
        pause: seconds per step, where an executor has started a process for the trial.
        die: at step 12 (in the second epoch) the process kills itself, unless this file is there.
    """

    log: str = ""
    tag: int = 0
    pause: float = 0.0
    die: str = ""

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        with open(self.log, "a") as file:
            file.write(f"{self.tag} {clock.step} {os.getpid()}\n")
        if self.pause and multiprocessing.parent_process() is not None:
            time.sleep(self.pause)
        if self.die and clock.step == STEPS + 4 and not Path(self.die).exists():
            Path(self.die).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def logged(log: Path, tag: int, *, pause: float = 0.0, die: Path | None = None) -> Experiment:
    """A training of two epochs."""
    method = Logged(str(log), tag, pause, str(die) if die is not None else "")
    return Experiment("lenet_300_100", "digits", method, Recipe(epochs=2, batch=200, seed=tag))


def double(x: int) -> int:
    return 2 * x


def fails_first(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        raise OSError("not  yet\nthere")
    return "worked"


def fails(text: str) -> None:
    raise ValueError(text)


def killed_first(marker: Path) -> str:
    """Says, in its second life, how many threads torch has."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"lived, threads: {torch.get_num_threads()}"


def leaves(status: int) -> None:
    sys.exit(status)


def cannot_be_sent() -> Callable[[], Any]:
    return lambda: None


def waits(marker: Path) -> None:
    marker.write_text(str(os.getpid()))
    time.sleep(600)


def main() -> None:
    """`root count name`: a sweep on two workers."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a test suite in the background hands down that it is ignored
    torch.set_num_threads(1)
    root, count, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    grid = [logged(root / "log", tag, pause=0.05) for tag in range(count)]
    sweep(grid, executor=Processes(2), runs=root / "runs", path=root / f"{name}.json")
