"""Job files of `paring prune`: ordinary Python with `net()`, `batches()` and what else is wanted.

| function | returns | without it |
|---|---|---|
| `net()` | the trained network | refused |
| `batches()` | training data, an iterable that begins anew: a DataLoader, a list | refused |
| `loss(net, batch)` | a scalar with a gradient | cross-entropy, or `net(**batch).loss` |
| `metric(net)` | a number, such as the accuracy in percent | no metric is shown |
| `validate()` | held-out batches for the loss | the loss is that of some training batches |
| `example()` | what the network takes | what the loss calls it with |
| `optimizer(parameters)` | an optimizer | SGD with BatchNorm in the network, else AdamW |

The file is the user's own and is run, with its folder in front of `sys.path`, as `python FILE` does.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from paring.cli.command import CommandError
from paring.cli.job import Job, JobError, seed_all
from paring.cli.meant import meant
from paring.core import Inputs
from paring.core.printable import printable

NEEDED = ("net", "batches")
WANTED = ("loss", "metric", "validate", "example", "optimizer")
_GIVEN = {"loss": ("net", "batch"), "metric": ("net",), "optimizer": ("parameters",)}  # the others take nothing
_EXAMPLE = "digits_job.py"


@contextmanager
def opened(path: Path, seed: int) -> Iterator[Job]:
    """The job in this file; while this is on, its folder is where it imports from, and what it raises names its line.

    Args:
        path: of the file.
        seed: of all global generators, before each of its functions.

    Raises:
        CommandError: there is no such file, or it has no `net()` or no `batches()`.
        JobError: something in it failed.
    """
    source = _text(path)
    before, module = list(sys.path), ModuleType(_module_name(path))
    module.__file__ = str(path)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module.__name__] = module
    try:
        with blamed(path):
            seed_all(seed)
            exec(_compiled(source, path), module.__dict__)
            job = _job(path, source, vars(module), seed)
            seed_all(seed)
            yield job
    finally:
        sys.path[:] = before
        del sys.modules[module.__name__]


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """What is raised in this file, or by what it calls, becomes a JobError that names the line; all else stays."""
    try:
        yield
    except (JobError, CommandError):
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if not frames:
            raise
        where = "" if frames[-1].name == "<module>" else f", in {frames[-1].name}()"
        told = " ".join(str(error).split())
        raise JobError(
            f"{_shown(path)}, line {frames[-1].lineno}{where}: {type(error).__name__}{told and ': '}{printable(told)}"
        ) from error


def check_there(path: Path) -> None:
    """Refuse a path at which there is nothing.

    Raises:
        CommandError: names it.
    """
    if not path.exists():
        own = _shown(path) if path.suffix == ".py" else "job.py"
        raise CommandError(f"{_shown(path)}: there is no such file; paring prune --init {own} writes one to begin with")


def write_example(path: Path) -> None:
    """Write a job file to begin with; it runs as it is.

    Raises:
        CommandError: there is a file already, or no folder for it.
    """
    if not path.parent.is_dir():
        raise CommandError(f"--init {path}: there is no folder {path.parent}; make it first")
    text = Path(__file__).with_name(_EXAMPLE).read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise CommandError(
            f"--init {path}: is there already and stays as it is; name another file: paring prune --init other.py"
        ) from error


def _text(path: Path) -> bytes:
    check_there(path)
    return path.read_bytes()


def _module_name(path: Path) -> str:
    """Its own name, by which processes that load data import it too, unless that is taken."""
    return path.stem if path.stem not in sys.modules else f"paring_job_{path.stem}"


def _compiled(source: bytes, path: Path) -> Any:
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise JobError(f"{_shown(path)}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise JobError(f"{_shown(path)} is no Python file: {error}") from error


def _job(path: Path, source: bytes, names: dict[str, Any], seed: int) -> Job:
    there = {name: found for name in (*NEEDED, *WANTED) if (found := names.get(name)) is not None}
    for name in NEEDED:
        if name not in there:
            near = [key for key, one in names.items() if _own(one, path) and meant(key, [name])]
            told = f" ({near[0]}() is there; rename it if it is that)" if near else ""
            raise CommandError(
                f"{_shown(path)} has no {name}(){told}: a job file defines net() and batches(); paring prune --init writes one "
                "to begin with"
            )
    for name, found in there.items():
        if not callable(found):
            raise CommandError(
                f"{_shown(path)}: {name} has to be a function, and is a value of type {type(found).__name__}"
            )

        try:
            inspect.signature(found).bind(*_GIVEN.get(name, ()))
        except TypeError as error:
            call = f"{name}({', '.join(_GIVEN.get(name, ()))})"
            raise JobError(
                f"{_shown(path)}{_line(found)}: it is called as {call}, and that does not fit: {error}"
            ) from error
        except ValueError:  # what is built in may not say
            pass

    def called(name: str) -> Any:
        if name not in there:
            return None
        seed_all(seed)
        return there[name]()

    net = called("net")
    if not isinstance(net, nn.Module):
        raise _returned(path, there["net"], "net()", "a torch.nn.Module", net)
    batches, validate = called("batches"), called("validate")
    for name, found in (("batches", batches), ("validate", validate)):
        if name in there and not hasattr(found, "__iter__") and not hasattr(found, "__getitem__"):
            raise _returned(path, there[name], f"{name}()", "batches, such as a DataLoader or a list", found)
    example = called("example")
    try:
        Inputs.of(example)
    except TypeError as error:
        if "example" in there:
            raise JobError(f"{_shown(path)}{_line(there['example'])}: example(): {error}") from error
    return Job(
        path.name,
        hashlib.sha256(source).hexdigest(),
        net,
        batches,
        loss=there.get("loss"),
        metric=there.get("metric"),
        validate=validate,
        example=example,
        optimizer=there.get("optimizer"),
        said=tuple(_said(path, names, there)),
        model=type(net).__name__,
        data=path.name,
    )


def _said(path: Path, names: dict[str, Any], there: dict[str, Any]) -> Iterator[str]:
    """Functions whose names are nearly those that are looked for."""
    missing = [name for name in WANTED if name not in there]
    for name, found in names.items():
        if _own(found, path) and name not in there and (hint := meant(name, missing)):
            yield f"{name}() is not used: {hint.strip()}"


def _own(value: Any, path: Path) -> bool:
    return isinstance(value, FunctionType) and value.__code__.co_filename == str(path)


def _returned(path: Path, function: Callable[..., Any], call: str, wanted: str, got: object) -> JobError:
    what = "nothing" if got is None else f"a value of type {type(got).__name__}"
    return JobError(f"{_shown(path)}{_line(function)}: {call} has to return {wanted}, and returned {what}")


def _line(function: Callable[..., Any]) -> str:
    return f", line {function.__code__.co_firstlineno}" if isinstance(function, FunctionType) else ""


def _shown(path: Path) -> str:
    return printable(os.fspath(path))
