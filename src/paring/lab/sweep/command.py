"""`paring sweep`: the options of `paring train`, some of them with several values, and what runs the grid."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paring.lab.command import CommandError, set_threads
from paring.lab.config import digest
from paring.lab.experiment import Experiment
from paring.lab.sweep.cluster import Ray
from paring.lab.sweep.engine import Swept, sweep
from paring.lab.sweep.executor import Executor, Serial
from paring.lab.sweep.processes import Processes
from paring.lab.training import TrainArguments, method_named, method_options, read_training
from paring.train import Recipe

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
_NO_TRIAL = ("runs", "threads", "quiet")


@dataclass(frozen=True)
class SweepArguments:
    """The grid, and what runs it.

    Args:
        vary: NAME=V1,V2,... for each option that takes several values.
        executor: serial (one after another, in this process), processes (a fresh one per trial), or ray.
        workers: trials at a time; each of several uses one thread.
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
    if {"-h", "--help"} & set(words):
        read_training(words, prog="paring sweep", description=_DESCRIPTION, first=SweepArguments)
    given = [_varied(text) for text in _vary(words)]
    varied = dict(given)
    if len(varied) < len(given):
        raise CommandError("--vary: an option stands there twice; give all of its values at once")
    _check_given_once(varied, words)
    points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    grid, what, options = _read(words, points)
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


def _vary(words: Sequence[str]) -> list[str]:
    """The words that belong to --vary."""
    found, inside = [], False
    for word in words:
        if word.startswith("--"):
            flag, equals, rest = word.partition("=")
            inside = flag == "--vary"
            found += [rest] if inside and equals else []
        elif inside:
            found.append(word)
    return found


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


def _varied(text: str) -> tuple[str, list[str]]:
    """Name and values of one word of --vary."""
    name, equals, rest = text.partition("=")
    values = [value.strip() for value in rest.split(";" if ";" in rest else ",")]
    if not equals or not name.strip():
        raise CommandError(f"--vary {text}: write NAME=V1,V2,..., as in density=0.5,0.2")
    if not all(values):
        raise CommandError(f"--vary {text}: a value is empty")
    if len(set(values)) < len(values):
        raise CommandError(f"--vary {text}: a value stands there twice")
    return name.strip().lstrip("-").replace("-", "_"), values


def _check_given_once(varied: Mapping[str, list[str]], words: Sequence[str]) -> None:
    for name in varied:
        flags = {f"--{start}{spelled}" for start in ("", "no-") for spelled in (name, name.replace("_", "-"))}
        for word in words:
            if word.partition("=")[0] in flags:
                raise CommandError(f"--vary {name}=...: {word.partition('=')[0]} is given as well; give one of the two")


def _read(
    words: Sequence[str], points: Sequence[Mapping[str, str]]
) -> tuple[list[Experiment], TrainArguments, SweepArguments]:
    """For each point of the grid the experiment that `paring train` would run; and the options that all share."""
    read = [
        read_training(
            [*words, *_point(words, point)], prog="paring sweep", description=_DESCRIPTION, first=SweepArguments
        )
        for point in points
    ]
    return [experiment for _, experiment, _ in read], read[0][0], read[0][2]


def _point(words: Sequence[str], point: Mapping[str, str]) -> list[str]:
    """A point of the grid as words of a command line."""
    method, kind = method_named([f"--method={point['method']}"] if "method" in point else words)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    known = {option: fields[name] for option, name in method_options(method, SweepArguments).items()}
    known |= {f.name: f for owner in (TrainArguments, Recipe) for f in dataclasses.fields(owner)}
    found = []
    for name, value in point.items():
        if name not in known or name in _NO_TRIAL:
            names = ", ".join(sorted(set(known) - set(_NO_TRIAL)))
            raise CommandError(f"--vary {name}=...: --method {method} has no such option; there are {names}")
        found += _words(name, known[name], value)
    return found


def _words(name: str, option: dataclasses.Field[Any], value: str) -> list[str]:
    """An option and its value as words of a command line."""
    flag = name.replace("_", "-")
    if option.type == "bool":
        if value.lower() not in ("true", "false"):
            raise CommandError(f"--vary {name}={value}: true or false")
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    try:
        return [f"--{flag}", *shlex.split(value)]
    except ValueError as error:
        raise CommandError(f"--vary {name}={value}: {error}") from error


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
