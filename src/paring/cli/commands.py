"""The subcommands: what each takes, and what it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paring.cli.arguments import read
from paring.cli.command import CommandError, set_threads
from paring.cli.experiment import RESULT, SMALL
from paring.cli.index_page import write_index
from paring.cli.reading import architecture_of, read_result
from paring.cli.summary import summary
from paring.cli.train_options import read_training
from paring.core import Method, Stack
from paring.methods import L0, Price
from paring.train import METRICS, read_metrics, write_atomic

# --- demo -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoArguments:
    """Options of the demo.

    Args:
        out: folder to write to.
        seed: seed of everything.
        threads: CPU threads; a network this small is fastest on one.
    """

    out: Path = Path("runs/demo")
    seed: int = 0
    threads: int = 1


def _demo(words: Sequence[str]) -> int:
    from paring.cli import demo

    options = read(
        DemoArguments,
        words,
        prog="paring demo",
        description=(
            "Train a dense network and the same network with L0 unit gates on scikit-learn's digits, remove what closed, "
            "compare them side by side, and prove that the small network computes what the gated one did.\n\n"
            "examples:\n  paring demo\n  paring demo --seed 1 --out runs/demo-1"
        ),
    )
    set_threads(options.threads)
    return demo.main(options.out, options.seed)


# --- train ----------------------------------------------------------------------------------------------------------


def _train(words: Sequence[str]) -> int:
    description = (
        "Train a network. The run's folder is named by the hash of its settings: an interrupted run goes on from its last "
        "epoch, a finished one is not done again.\n\nexamples:\n"
        "  paring train --model lenet_300_100 --data digits --method l0 --at inputs --price 1e-4 --epochs 30\n"
        "  paring train --model lenet5 --data mnist --method l0 --at units:Conv2d inputs:Linear --price budget:macs=0.25\n"
        "  paring train --model lenet5 --data mnist --price budget:macs=0.25 --hold 0.8 --shrink 1ep\n"
        "  paring train --model resnet20 --data cifar10 --method dense --optimizer sgd --lr 0.1 --schedule cosine --crop 4 --flip\n"
    )
    what, experiment, _ = read_training(words, prog="paring train", description=description)
    set_threads(what.threads)
    if _asks_for_nothing(experiment.method):
        print(
            "paring train: without --price, open gates cost nothing: they add noise and none is meant to close. Ask for a size "
            "(--price budget:params=0.25) or name a price per parameter (--price 1e-6)",
            file=sys.stderr,
        )
    folder = what.runs / experiment.name
    if experiment.result(what.runs) is not None:
        print(
            f"this run is finished already and only read: {folder}; --runs FOLDER trains it anew elsewhere",
            file=sys.stderr,
        )
    row = experiment.run(what.runs, progress=not what.quiet)
    _page(folder, row)
    write_index(what.runs)
    print(json.dumps(row, indent=2) if what.json else summary(row, folder))
    print(f"written to {folder}", file=sys.stderr)
    return 0


def _asks_for_nothing(method: Method) -> bool:
    """Whether it is L0, alone or in a stack, at a price of 0 and without another term that would close gates."""
    parts = method.methods if isinstance(method, Stack) else (method,)
    return any(isinstance(part, L0) and part.price == Price(0.0) and not (part.kl or part.l2) for part in parts)


# --- prune, sensitivity ---------------------------------------------------------------------------------------------


def _prune(words: Sequence[str]) -> int:
    from paring.cli.prune_command import prune_command

    return prune_command(words)


def _sensitivity(words: Sequence[str]) -> int:
    from paring.cli.sensitivity_command import sensitivity_command

    return sensitivity_command(words)


# --- tickets, sweep -------------------------------------------------------------------------------------------------


def _tickets(words: Sequence[str]) -> int:
    from paring.cli.tickets.tickets_command import run

    return run(words)


def _sweep(words: Sequence[str]) -> int:
    from paring.cli.sweep import sweep_command as command

    return command.run(words)


# --- report ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportArguments:
    """What to report on.

    Args:
        run: a run's folder (runs/..., runs/demo).
        html: also write report.html into the folder.
    """

    run: Path
    html: bool = True


def _report(words: Sequence[str]) -> int:
    options = read(
        ReportArguments,
        words,
        first="run",
        prog="paring report",
        description="Layer by layer: what a finished run kept.\n\nexamples:\n  paring report runs/demo\n  paring report runs/lenet_300_100-digits-l0-…",
    )
    result = options.run / RESULT
    if not result.exists():
        raise CommandError(
            f"{options.run} holds no finished run ({RESULT} is missing); name a run's folder, as in: paring report runs/demo"
        )
    row = read_result(result)
    assert row is not None
    if row.get("method") == "prune":
        raise CommandError(f"{options.run} is a run of paring prune: its layers are in {options.run / 'report.html'}")
    if options.html:
        _page(options.run, row)
    print(_layers(options.run, row))
    return 0


def _layers(folder: Path, row: dict[str, Any]) -> Any:
    """The layer table of the small network saved in a run's folder."""
    from paring.cost import report
    from paring.files import load
    from paring.models import build

    model, shape, classes = architecture_of(row, folder / RESULT)
    net = load(lambda: build(model, shape=shape, classes=classes), folder / SMALL)
    return report(net, torch.zeros(2, *shape), title=f"{model} on {row['data']}")


def _page(folder: Path, row: dict[str, Any]) -> None:
    """Write report.html of a run."""
    from paring.cli.page import run_page

    metrics = [line for line in read_metrics(folder / METRICS) if "epoch" in line]
    table = _layers(folder, row)
    write_atomic(folder / "report.html", run_page(f"paring: {row['model']} on {row['data']}", row, metrics, table.rows))


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataArguments:
    """What to look at.

    Args:
        fetch: data sets to download and check now; nothing only lists.
    """

    fetch: tuple[str, ...] = ()


def _data(words: Sequence[str]) -> int:
    from paring.data import NAMES, fetch, status

    options = read(
        DataArguments,
        words,
        prog="paring data",
        description=(
            "Where the data sets are and whether their files are whole. The folder named by PARING_DATA is looked at first.\n\n"
            "examples:\n  paring data\n  paring data --fetch mnist cifar10"
        ),
    )
    for name in options.fetch:
        if name.replace("-", "_") not in NAMES:
            raise CommandError(f"--fetch {name}: there is no such data set; choose from {', '.join(NAMES)}")
        fetch(name.replace("-", "_"))
    for record in status():
        size = f"{record.size:,} bytes" if record.size is not None else ""
        state = "ok" if record.ok else record.problem
        print(f"{record.name:<14}{record.file:<30}{size:>20}  {state:<12}{record.path or ''}".rstrip())
    return 0


# --- pack, unpack, info ---------------------------------------------------------------------------------------------


def _pack(words: Sequence[str]) -> int:
    from paring.cli.packing import pack_command

    return pack_command(words)


def _unpack(words: Sequence[str]) -> int:
    from paring.cli.unpacking import unpack_command

    return unpack_command(words)


def _info(words: Sequence[str]) -> int:
    from paring.cli.unpacking import info_command

    return info_command(words)


RUNS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "prune": _prune,
    "sensitivity": _sensitivity,
    "train": _train,
    "sweep": _sweep,
    "tickets": _tickets,
    "report": _report,
    "pack": _pack,
    "unpack": _unpack,
    "info": _info,
    "data": _data,
}
"""What runs each command; `paring.cli.main` says what each is for."""
