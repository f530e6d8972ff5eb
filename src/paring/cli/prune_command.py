"""`paring prune`: a trained network, as small as asked, from a job file or from a run of `paring train`."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paring.cli.arguments import read
from paring.cli.command import CommandError, set_threads
from paring.cli.config import digest
from paring.cli.experiment import RESULT, SMALL, working_in
from paring.cli.index_page import PAGE, write_index
from paring.cli.job import Job, seed_all
from paring.cli.job_file import check_there, opened, write_example
from paring.cli.prune_page import prune_page
from paring.cli.prune_progress import PruneProgress
from paring.cli.prune_result import METHOD, Made, file_of, read_pruned, result_row, size_of, summary
from paring.cli.reading import read_json
from paring.cli.trained_run import run_job
from paring.core import At, ParingWarning, Places
from paring.core.printable import printable
from paring.methods import Budget
from paring.methods.budget import SIZES
from paring.pruning import Fisher, Importance, Magnitude, Search, Taylor, Teacher, Tune, prune
from paring.train import write_atomic

STATE = "state"
_CONFIG = "config.json"
ImportanceName = Literal["fisher", "taylor", "magnitude"]
IMPORTANCES: dict[ImportanceName, Importance] = {"fisher": Fisher(), "taylor": Taylor(), "magnitude": Magnitude()}

JOB = """a job file is ordinary Python; paring prune --init [FILE] writes a commented one that runs as it is:
  net()                   the trained network
  batches()               training data that can be gone through several times: a DataLoader, a list

and, if wanted,
  loss(net, batch)        a scalar; else cross-entropy for pairs, net(**batch).loss for mappings
  metric(net)             a number, such as the accuracy, shown before and after
  validate()              held-out batches, on which the loss is reported
  example()               what the network takes; else what the loss calls it with
  optimizer(parameters)   for the training after the cut"""


_SIZES = ("macs", *(name for name in SIZES if name != "macs"))  # by the first one, networks are put in order


@dataclass(frozen=True)
class PruneArguments:
    """What to prune, and how small.

    Args:
        what: a job file, the folder of a run of `paring train`, or a .safetensors file of a built-in network.
        macs: shares of the dense network's multiply-accumulates that may be left; several give a curve.
        params: shares of its parameters that may be left; together with --macs, both hold.
        latency: shares of its measured time on this machine that may be left, at the batch size of the job; on a quiet machine.
        bytes: shares of the bytes of its tensors that may be left.
        memory: shares of the bytes at the peak of its forward pass that may be left, at the batch size of the job.
        epochs: passes over the batches after the cut; 0 only calibrates.
        at: which units may go; "units:!NAME" leaves a layer alone, "heads" takes heads of attention, "stream" units of the hidden size.
        importance: how units are judged.
        rounds: the cut is made in so many steps, judged anew before each; left out, 4 for a half, 8 for a quarter.
        batches: how many batches the search looks at.
        repair: let what stays take over the work of what goes.
        least: share of the units of each group that stays in any case.
        balance: how much groups are spared that became narrower than others; 0 not at all; left out, 2 for networks with BatchNorm and 0 for others.
        multiple_of: widths come out as multiples of this, which processors like.
        teacher: weight of the dense network's answers in the loss at the first step of training, from 0 (none) to 1; it fades to nothing by the last.
        logits: what the network answers are logits, and the teacher compares them so, though the job has a loss of its own.
        model: the network, where `what` is a file of tensors.
        data: the data set, where `what` is a file of tensors.
        seed: of everything that is random.
        out: folder of this run; by default one below `runs`, named by the job and the hash of all settings.
        runs: folder of all run folders.
        threads: CPU threads; 0 uses all.
        quiet: show no progress.
        json: print the result as JSON, not as text.
    """

    what: Path
    macs: tuple[float, ...] = ()
    params: tuple[float, ...] = ()
    latency: tuple[float, ...] = ()
    bytes: tuple[float, ...] = ()
    memory: tuple[float, ...] = ()
    epochs: int = 2
    at: At = "units"
    importance: ImportanceName = "fisher"
    rounds: int | None = None
    batches: int = 8
    repair: bool = True
    least: float = 0.0
    balance: float | None = None
    multiple_of: int = 1
    teacher: float = 0.5
    logits: bool = False
    model: str = ""
    data: str = ""
    seed: int = 0
    out: Path | None = None
    runs: Path = Path("runs")
    threads: int = 0
    quiet: bool = False
    json: bool = False


def prune_command(words: Sequence[str]) -> int:
    """Run `paring prune`."""
    if "--init" in words:
        return _init(words)
    options = read(
        PruneArguments,
        words,
        first="what",
        prog="paring prune",
        description=(
            "Make a trained network smaller: the units that the loss misses least go, exactly, and the small network is trained on "
            "with the original as its teacher.\n\nexamples:\n"
            "  paring prune --init job.py\n"
            "  paring prune job.py --macs 0.5 --epochs 5\n"
            "  paring prune job.py --macs 0.5 0.35 0.25 --epochs 5\n"
            "  paring prune job.py --params 0.3 --macs 0.5 --at 'units:!layer4.*' --out runs/mine\n"
            "  paring prune runs/lenet5_caffe-mnist-dense-… --macs 0.25\n"
            "  paring prune net.safetensors --model resnet20 --data cifar10 --macs 0.5\n\n"
            f"{JOB}\n\n"
            "what comes out, in a folder below runs/: small.safetensors (pr.load reads it), report.html, and result.json. "
            "Interrupted, the same command goes on from its last epoch, bit for bit."
        ),
    )
    check_there(options.what)
    set_threads(options.threads)
    budgets, search, training, teacher = _values(options)
    with job_of(options.what, options.model, options.data, options.seed) as job:
        settings = _settings(options, budgets)
        key = digest({"job": job.name, "source": job.source, **settings})
        folder = options.out or options.runs / f"{Path(job.name).stem}-{METHOD}-{key}"
        _own(folder, key)
        row = read_pruned(folder)
        if row is not None:
            print(f"this run is finished already and only read: {printable(folder)}", file=sys.stderr)
        else:
            for said in job.said if not options.quiet else ():
                print(f"{printable(job.name)}: {printable(said)}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            with working_in(folder):
                known = {"run": key, "seed": options.seed, "epochs": options.epochs, "settings": settings}
                config = {"run": key, "job": job.name, "source": job.source, "validation": job.validation, **settings}
                write_atomic(folder / _CONFIG, json.dumps(config, indent=2) + "\n")
                tune = Tune(training.epochs, job.optimizer)
                row = _pruned(job, budgets, search, tune, teacher, options, folder, known)
    if options.out is None:
        write_index(options.runs)
    print(json.dumps(row, indent=2) if options.json else summary(row, folder))
    print(f"written to {printable(folder)}", file=sys.stderr)
    return 0


@contextmanager
def job_of(what: Path, model: str, data: str, seed: int) -> Iterator[Job]:
    """What is pruned: a folder or a .safetensors file is of a built-in network, all else is a job file."""
    if what.is_dir() or what.suffix == ".safetensors":
        seed_all(seed)
        yield run_job(what, model, data)
        return
    if model or data:
        raise CommandError(
            f"--model and --data name a built-in network; {printable(what)} is a job file and says itself what it is"
        )
    with opened(what, seed) as job:
        yield job


def _pruned(
    job: Job,
    budgets: list[Budget],
    search: Search,
    training: Tune,
    teacher: Teacher | None,
    options: PruneArguments,
    folder: Path,
    known: dict[str, Any],
) -> dict[str, Any]:
    job = job.with_example()
    assert job.example is not None
    sizes = [size_of(budget) for budget in budgets]
    seed_all(options.seed)
    with (
        PruneProgress(printable(job.name), folder / STATE, sizes, training.epochs, not options.quiet) as progress,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", category=ParingWarning, module=r"paring\.pruning\.pruned"
        )  # the summary has them
        found = prune(
            job.net,
            job.batches,
            job.loss,
            to=budgets,
            example=job.example,
            at=Places.of(options.at),
            search=search,
            teacher=teacher,
            training=training,
            validate=job.validate,
            metric=job.metric,
            folder=folder / STATE,
            watch=progress.told,
        )
    made = [
        Made(net, pruned, file_of(budget, len(budgets))) for budget, (net, pruned) in zip(budgets, found, strict=True)
    ]
    row = result_row(job, job.example, made, folder, known)
    write_atomic(folder / PAGE, prune_page(f"paring: {job.name} made smaller", row))
    write_atomic(folder / RESULT, json.dumps(row, indent=2) + "\n")
    return row


def _values(options: PruneArguments) -> tuple[list[Budget], Search, Tune, Teacher | None]:
    """The values that the options stand for.

    Raises:
        CommandError: they do not fit.
    """
    try:
        search = Search(
            IMPORTANCES[options.importance],
            options.rounds,
            options.batches,
            options.repair,
            least=options.least,
            balance=options.balance,
        )
        teacher = Teacher(options.teacher, logits=options.logits or None) if options.teacher else None
        return _budgets(options), search, Tune(options.epochs), teacher
    except ValueError as error:
        raise CommandError(str(error)) from error


def _budgets(options: PruneArguments) -> list[Budget]:
    """One for each size, the largest first."""
    given = {f"--{name}": getattr(options, name) for name in _SIZES}
    counts = {name: len(values) for name, values in given.items() if values}
    if not counts:
        raise CommandError(
            "ask for a size: --macs 0.5 leaves half of the arithmetic, --params 0.3 a third of the parameters, --latency 0.5 half "
            "of the time, --bytes 0.5 half of the bytes, --memory 0.5 half of the peak memory"
        )
    longest = max(counts.values())
    if any(count not in (1, longest) for count in counts.values()):
        told = " and ".join(f"{name} {count}" for name, count in counts.items())
        raise CommandError(f"numbers of sizes that do not go together, {told}: give as many of each, or one for all")
    many = [(one * longest if len(one) == 1 else one) or (None,) * longest for one in given.values()]
    rows = sorted(zip(*many, strict=True), key=lambda row: [-(value or 0.0) for value in row])
    if len(set(rows)) < len(rows):
        raise CommandError(f"{', '.join(counts)}: a size stands there twice")
    return [Budget(**dict(zip(_SIZES, row, strict=True)), multiple_of=options.multiple_of) for row in rows]


def _settings(options: PruneArguments, budgets: list[Budget]) -> dict[str, Any]:
    """What decides the result, in plain values."""
    names = (
        "epochs",
        "importance",
        "rounds",
        "batches",
        "repair",
        "least",
        "balance",
        "multiple_of",
        "teacher",
        "logits",
        "model",
        "data",
        "seed",
    )
    sizes = [size_of(budget) for budget in budgets]
    return {"sizes": sizes, "at": Places.of(options.at).plain, **{name: getattr(options, name) for name in names}}


def _own(folder: Path, key: str) -> None:
    """Refuse a folder of something else.

    Raises:
        CommandError: it holds another run.
    """
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--out {printable(folder)}: is a file; name a folder")
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else None
    if config is None and not any((folder / name).exists() for name in (RESULT, SMALL)):
        return
    if not isinstance(config, dict) or config.get("run") != key:
        raise CommandError(
            f"{printable(folder)} holds another run, or one of a job file that has changed since: name another folder with --out"
        )


def _init(words: Sequence[str]) -> int:
    """Write a job file."""
    others = [word for word in words if word != "--init"]
    if len(others) > 1 or any(word.startswith("-") for word in others):
        raise CommandError("--init takes the name of the file to write, and nothing else: paring prune --init job.py")
    path = Path(others[0]) if others else Path("job.py")
    write_example(path)
    print(f"{printable(path)} is written. It runs as it is; put your network and data in its place:")
    print(f"  paring prune {printable(shlex.quote(str(path)))} --macs 0.5 --epochs 5")
    return 0
