"""The options of `paring train`: which network, data, method and recipe; read into an experiment."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch

from paring.cli.arguments import read
from paring.cli.command import CommandError
from paring.cli.experiment import Experiment
from paring.cli.meant import meant
from paring.cli.method_list import METHODS, listed
from paring.core import Method, Stack
from paring.methods import Dense, Shrink
from paring.train import Recipe


@dataclass(frozen=True)
class TrainArguments:
    """Which network, which data, and where the run goes.

    Args:
        model: network: lenet_300_100, lenet5 (= lenet5_caffe), vgg16, resnet20, wrn_28_10, ...
        data: data set: digits (needs nothing), mnist, fashion_mnist, cifar10, cifar100.
        method: what the network may lose, one of those above; decides which further options there are.
        validation: training examples set aside for choosing settings.
        shrink: cut what has closed for good out of the network while it trains, looking this often: "1ep" or a number of
            steps; empty leaves that to the end.
        runs: folder of all run folders.
        threads: CPU threads; 0 uses all.
        quiet: show no progress.
        json: print the result as JSON, not as text.
    """

    model: str = "lenet_300_100"
    data: str = "digits"
    method: str = "l0"
    validation: int = 0
    shrink: str = ""
    runs: Path = Path("runs")
    threads: int = 0
    quiet: bool = False
    json: bool = False


def method_named(words: Sequence[str]) -> tuple[str, type[Method]]:
    """The method that the words ask for.

    Raises:
        CommandError: there is none of this name.
    """
    name = "l0"
    for index, word in enumerate(words):
        if word == "--method" and index + 1 < len(words):
            name = words[index + 1]
        elif word.startswith("--method="):
            name = word.partition("=")[2]
    if name not in METHODS:
        raise CommandError(
            f"--method {name}: there is no such method; {meant(name, METHODS)}choose one of {', '.join(METHODS)}"
        )
    return name, METHODS[name]


def method_options(name: str, first: type[Any] | None = None) -> dict[str, str]:
    """The options of a method on the command line: option → field.

    A field of the same name as another option (or as a field of `first`) has the method's name in front.
    """
    owners = (TrainArguments, Recipe, *((first,) if first is not None else ()))
    taken = {f.name for owner in owners for f in dataclasses.fields(owner)}
    names = (f.name for f in dataclasses.fields(METHODS[name]))
    return {f"{name}_{field}" if field in taken else field: field for field in names}


def _with_options(kind: type[Method], options: Mapping[str, str]) -> type[Any]:
    """A dataclass that holds what the method's fields hold, under the names of the options, with their documentation."""
    if all(option == name for option, name in options.items()):
        return kind
    hints, doc, found = get_type_hints(kind), kind.__doc__ or "", {f.name: f for f in dataclasses.fields(kind)}
    entries: list[Any] = []
    for option, name in options.items():
        one = found[name]
        factory = one.default_factory
        start: Any = field(default=one.default) if factory is dataclasses.MISSING else field(default_factory=factory)
        entries.append((option, hints[name], start))
        doc = re.sub(rf"^( +){name}: ", rf"\1{option}: ", doc, flags=re.MULTILINE)
    return dataclasses.make_dataclass(kind.__name__, entries, frozen=True, namespace={"__doc__": doc})


def read_training(
    words: Sequence[str], *, prog: str, description: str, first: type[Any] | None = None
) -> tuple[TrainArguments, Experiment, Any]:
    """Read the words of a training.

    Args:
        words: of the command line.
        prog, description: for `--help`.
        first: a frozen dataclass of further options.

    Returns:
        the options that are no part of the experiment, the experiment, and the value of `first`.

    Raises:
        CommandError: a network, data set, method or device that is not there.
        SystemExit: the words do not fit (status 2), or help was asked for (status 0).
    """
    from paring.data import NAMES
    from paring.models import MODELS

    name, kind = method_named(words)
    fields: list[Any] = [("first", first, field(default_factory=first))] if first is not None else []
    fields.append(("run", TrainArguments, field(default_factory=lambda: TrainArguments(method=name))))
    options = method_options(name, first)
    named = _with_options(kind, options)
    if options:
        fields.append((name, named, field(default_factory=named)))
    fields.append(("recipe", Recipe, field(default_factory=Recipe)))
    shape = dataclasses.make_dataclass("Train", fields, frozen=True)
    told = f"{description}\nmethods:\n{listed()}\n\noptions below are those of --method {name}"
    found: Any = read(shape, words, prog=prog, description=told)
    what: TrainArguments = found.run
    model = {"lenet5": "lenet5_caffe"}.get(what.model, what.model)
    data = what.data.replace("-", "_")
    known = [name for name in MODELS if name not in ("mlp", "wide_resnet")]  # these take widths, in Python
    if model not in known:
        raise CommandError(
            f"--model {what.model}: there is no such network; {meant(model, known)}choose one of {', '.join(known)}"
        )
    if data not in NAMES:
        raise CommandError(
            f"--data {what.data}: there is no such data set; {meant(data, NAMES)}choose one of {', '.join(NAMES)}"
        )
    if what.validation < 0:
        raise CommandError(f"--validation {what.validation}: a number of examples, at least 0")
    elsewhere = bool(getattr(getattr(found, "first", None), "address", ""))  # a cluster has its own devices
    try:
        torch.empty(0, device="cpu" if elsewhere else found.recipe.device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {found.recipe.device}: not available here ({error})") from error
    method: Method = getattr(found, name, None) or kind()
    if named is not kind:
        try:
            method = kind(**{to: getattr(method, option) for option, to in options.items()})
        except ValueError as error:
            raise CommandError(str(error)) from error
    if what.shrink:
        if type(method) is Dense:
            raise CommandError("--shrink: dense training closes nothing that could be cut; use --method l0")
        method = Stack(method, Shrink(every=what.shrink))
    return (
        what,
        Experiment(model, data, method, found.recipe, validation=what.validation),
        getattr(found, "first", None),
    )
