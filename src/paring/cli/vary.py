"""`--vary NAME=V1,V2`: options of `paring train` with several values, as the grid of experiments that they span."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from paring.cli.command import CommandError
from paring.cli.experiment import Experiment
from paring.cli.meant import meant
from paring.cli.train_options import TrainArguments, method_named, method_options, read_training
from paring.train import Recipe

_NO_TRIAL = ("runs", "threads", "quiet", "json")


def read_grid(
    words: Sequence[str], *, prog: str, description: str, first: type[Any]
) -> tuple[list[Experiment], TrainArguments, Any]:
    """For each combination of varied values the experiment that `paring train` would run.

    Args:
        words: of the command line.
        prog, description: for `--help`.
        first: a frozen dataclass of further options, with `vary`.

    Returns:
        the experiments, the options that all share and that are no part of them, and the value of `first`.

    Raises:
        CommandError: a name or value that there is not, or one that stands there twice.
        SystemExit: the words do not fit (status 2), or help was asked for (status 0).
    """
    if {"-h", "--help"} & set(words):
        read_training(words, prog=prog, description=description, first=first)
    given = [_varied(text) for text in _vary(words)]
    varied = dict(given)
    if len(varied) < len(given):
        raise CommandError("--vary: an option stands there twice; give all of its values at once")
    _check_given_once(varied, words)
    points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    read = [
        read_training([*words, *_point(words, point, first)], prog=prog, description=description, first=first)
        for point in points
    ]
    return [experiment for _, experiment, _ in read], read[0][0], read[0][2]


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


def _point(words: Sequence[str], point: Mapping[str, str], first: type[Any]) -> list[str]:
    """A point of the grid as words of a command line."""
    method, kind = method_named([f"--method={point['method']}"] if "method" in point else words)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    known = {option: fields[name] for option, name in method_options(method, first).items()}
    known |= {f.name: f for owner in (TrainArguments, Recipe) for f in dataclasses.fields(owner)}
    found = []
    for name, value in point.items():
        if name not in known or name in _NO_TRIAL:
            names = ", ".join(sorted(set(known) - set(_NO_TRIAL)))
            raise CommandError(
                f"--vary {name}=...: --method {method} has no such option; {meant(name, set(known) - set(_NO_TRIAL))}there are {names}"
            )
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
