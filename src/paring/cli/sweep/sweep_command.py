"""`paring sweep`: the options of `paring train`, some of them with several values, and what runs the grid."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paring.cli.command import CommandError, set_threads
from paring.cli.config import digest
from paring.cli.experiment import Experiment
from paring.cli.sweep.cluster import Ray
from paring.cli.sweep.engine import Swept, sweep
from paring.cli.sweep.executor import Executor, Serial
from paring.cli.sweep.processes import Processes
from paring.cli.vary import read_grid

_DESCRIPTION = (
    "Train a grid: every combination of the values given to --vary, each as `paring train` would, several at a time. "
    "Finished trials are not done again, stopped ones go on from their last epoch, failed ones are tried again and then "
    "listed; the same command continues a sweep that was interrupted. Results: one table, as JSON, CSV and a page.\n\n"
    "--vary takes options of the method and the recipe, and model, data, method, validation, shrink. Values are separated "
    "by commas, or by semicolons where a value has commas of its own; a value of several words is written with spaces.\n\n"
    "examples:\n"
    "  paring sweep --method gmp --vary density=0.5,0.2,0.1 seed=0,1,2 --epochs 5\n"
    "  paring sweep --method gmp --vary density=0.2,0.1 'ramp=0 0.5,0 0.75' --workers 2 --name ramps\n"
    "  paring sweep --model lenet5 --data mnist --vary 'price=budget:macs=0.5;budget:macs=0.25,params=0.2' seed=0,1\n"
    "  paring sweep --data mnist --vary method=gmp,rigl density=0.1,0.05 --executor ray --workers 2\n"
    "  paring sweep --data cifar10 --model resnet20 --vary lr=0.01,0.001 --executor ray --address auto --workers 8 --gpus 0.5\n"
)


@dataclass(frozen=True)
class SweepArguments:
    """The grid, and what runs it.

    Args:
        vary: NAME=V1,V2,... for each option that takes several values.
        executor: serial (one after another, in this process), processes (a fresh one per trial), or ray.
        workers: trials at a time (serial: always one); each of several uses one thread.
        address: of a running Ray cluster ("auto", "10.0.0.1:6379"); empty starts Ray here.
        gpus: GPUs per trial on Ray; 0.5 lets two share one.
        retries: how often a failed trial is tried again.
        name: of the table; empty makes one of the model, the data, the method and a hash of the grid.
        results: folder of the table.
    """

    vary: tuple[str, ...] = ()
    executor: Literal["serial", "processes", "ray"] = "processes"
    workers: int = 2
    address: str = ""
    gpus: float = 0.0
    retries: int = 1
    name: str = ""
    results: Path = Path("runs/sweeps")


def run(words: Sequence[str]) -> int:
    """`paring sweep`."""
    grid, what, options = read_grid(words, prog="paring sweep", description=_DESCRIPTION, first=SweepArguments)
    executor = _executor(options)
    name = options.name or _name(grid)
    if Path(name).name != name or name.startswith("."):
        raise CommandError(f"--name {name}: a file name without folders; the folder is --results")
    if what.threads > 1 and options.executor != "serial":
        raise CommandError(f"--threads {what.threads}: only for --executor serial; elsewhere each trial has one thread")
    set_threads(what.threads)
    if not options.address:
        _fetch(grid)
    path = options.results / f"{name}.json"
    command = shlex.join(["paring", "sweep", *words])
    swept = sweep(grid, executor=executor, runs=what.runs, path=path, command=command, progress=not what.quiet)
    return _told(swept, path)


def _executor(options: SweepArguments) -> Executor:
    if options.executor != "ray":
        for flag, given in (("--address", options.address), ("--gpus", options.gpus)):
            if given:
                raise CommandError(f"{flag} {given}: only for --executor ray, not {options.executor}")
    try:
        if options.executor == "serial":
            return Serial(retries=options.retries)
        if options.executor == "processes":
            return Processes(options.workers, retries=options.retries)
        return Ray(options.workers, retries=options.retries, address=options.address, gpus=options.gpus)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _name(grid: Sequence[Experiment]) -> str:
    """A readable name, with a hash of the grid."""
    parts = (
        "+".join(dict.fromkeys(values)) for values in zip(*((e.model, e.data, e.label) for e in grid), strict=True)
    )
    return "-".join([*parts, digest(sorted(experiment.key for experiment in grid))])


def _fetch(grid: Sequence[Experiment]) -> None:
    """Have the data here before several workers look for it at once."""
    from paring.data import fetch

    for name in {experiment.data for experiment in grid}:
        fetch(name)


def _told(swept: Swept, path: Path) -> int:
    """Say where the table is and what failed; the exit status."""
    for failure in swept.failures:
        print(
            f"failed after {failure.attempts} attempts: {failure.experiment.name}\n  {failure.reason}\n"
            f"  traceback: {failure.folder / 'error.txt'}",
            file=sys.stderr,
        )
    print(f"written to {path} (and .csv, .html)")
    if swept.failures:
        print(f"{len(swept.failures)} trials failed; the same command tries them again", file=sys.stderr)
    return 1 if swept.failures else 0
