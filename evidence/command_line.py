"""The subcommands that make evidence: tables of papers, benchmarks, and the docs made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paring.cli.arguments import read
from paring.cli.command import CommandError, set_threads
from paring.cli.freed_memory import keep_freed_memory


@dataclass(frozen=True)
class TableArguments:
    """Which table, and how much of it.

    Args:
        name: the table.
        seeds: number of seeds; 0 takes the table's own number.
        epochs: train for so many epochs instead of the paper's (a check; its rows say so); 0 keeps the paper's.
        examples: look at no more than so many examples of each part of the data (a check; its rows say so); 0 takes all.
        only: run only the rows whose network and label contain this text.
        jobs: runs at a time; each of several uses one thread.
        executor: where several run at a time: in processes of their own, or on Ray (extra `sweep`).
        threads: CPU threads when one run goes at a time; 0 uses all.
        runs: folder of run folders.
        results: folder of results files.
        quiet: show no progress.
    """

    name: str
    seeds: int = 0
    epochs: int = 0
    examples: int = 0
    only: str = ""
    jobs: int = 1
    executor: Literal["processes", "ray"] = "processes"
    threads: int = 0
    runs: Path = Path("runs")
    results: Path = Path("results")
    quiet: bool = False


def table(words: Sequence[str]) -> int:
    """`table`: make a paper's table."""
    from evidence.tables import COMPUTED, TABLES
    from evidence.tables.table import run_table
    from paring.cli.sweep import Ray

    known = {
        **{name: table.about for name, table in TABLES.items()},
        **{name: made.about for name, made in COMPUTED.items()},
    }
    listing = "\n".join(f"  {name:<26} {about}" for name, about in known.items())
    options = read(
        TableArguments,
        words,
        first="name",
        prog="python -m evidence table",
        description=(
            "Make a paper's table: results/NAME.json, one row per run. What is there already is not run again, and an "
            f"interrupted run goes on.\n\ntables:\n{listing}\n\nexamples:\n  python -m evidence table louizos2018-mnist --seeds 3\n"
            "  python -m evidence table louizos2018-mnist --only 'lenet_300_100 L0' --jobs 2\n"
            "  python -m evidence table louizos2018-mnist --seeds 1 --epochs 2\n"
            "  python -m evidence table frankle2020 --epochs 1 --examples 1000 --only 'resnet20 IMP'"
        ),
    )
    if options.name not in known:
        raise CommandError(f"there is no table {options.name!r}; choose one of {', '.join(known)}")
    for name, value, least in (
        ("seeds", options.seeds, 0),
        ("epochs", options.epochs, 0),
        ("examples", options.examples, 0),
        ("jobs", options.jobs, 1),
    ):
        if value < least:
            raise CommandError(f"--{name} {value}: must be at least {least}")
    set_threads(options.threads)
    command = f"python -m evidence table {options.name}"
    if options.name in COMPUTED:
        seeds = options.seeds or 3
        COMPUTED[options.name].run(options.results, options.runs, seeds, f"{command} --seeds {seeds}")
    else:
        chosen = TABLES[options.name]
        run_table(
            chosen,
            seeds=options.seeds or chosen.seeds,
            runs=options.runs,
            results=options.results,
            command=f"{command} --seeds {options.seeds or chosen.seeds}",
            epochs=options.epochs or None,
            examples=options.examples,
            only=options.only,
            jobs=options.jobs,
            executor=Ray(options.jobs) if options.executor == "ray" else None,
            progress=not options.quiet,
        )
    print(f"written to {options.results / options.name}.json")
    return 0


@dataclass(frozen=True)
class BenchArguments:
    """Which benchmark.

    Args:
        name: the benchmark.
        repeats: paired measurements; 0 takes the benchmark's own number.
        only: measure only the rows whose name contains this text.
        again: measure also what the results file holds already.
        epochs: of a benchmark that trains; 0 takes the benchmark's own number.
        seeds: of a benchmark that trains; 0 takes the benchmark's own number.
        threads: CPU threads while measuring.
        results: folder of results files.
        runs: folder of checkpoints of a benchmark that trains.
        nncodec: of codec: the Python of an environment that has NNCodec, to compare with it.
    """

    name: str
    repeats: int = 0
    only: str = ""
    again: bool = False
    epochs: int = 0
    seeds: int = 0
    threads: int = 1
    results: Path = Path("results")
    runs: Path = Path("runs")
    nncodec: Path | None = None


def bench(words: Sequence[str]) -> int:
    """`bench`: measure one benchmark."""
    from evidence.bench import BENCHES, Asked

    listing = "\n".join(f"  {name:<16} {bench.about}" for name, bench in BENCHES.items())
    options = read(
        BenchArguments,
        words,
        first="name",
        prog="python -m evidence bench",
        description=(
            "Measure, paired in one process: results/NAME.json, one row per measurement. What is there already is not "
            "measured again (--again does), and an interrupted benchmark goes on. Other libraries come with the extra "
            f"'bench'.\n\nbenchmarks:\n{listing}\n\nexamples:\n  python -m evidence bench gates\n  python -m evidence bench removal\n"
            "  python -m evidence bench removal --only resnet20/ --again\n  python -m evidence bench inference --repeats 30\n"
            "  python -m evidence bench training-speed --only lenet5_caffe --seeds 1 --epochs 20\n  python -m evidence bench sweep --only processes\n"
            "  python -m evidence bench codec --nncodec other-environment/bin/python"
        ),
    )
    if options.name not in BENCHES:
        raise CommandError(f"there is no benchmark {options.name!r}; choose one of {', '.join(BENCHES)}")
    chosen = BENCHES[options.name]
    if options.repeats < 0 or options.repeats == 1:
        raise CommandError(f"--repeats {options.repeats}: must be 0 (the benchmark's own number) or at least 2")
    if chosen.trains and options.repeats:
        raise CommandError(f"--repeats {options.repeats}: '{options.name}' trains, and repeats by --seeds")
    for name, value in (("epochs", options.epochs), ("seeds", options.seeds)):
        if value < 0:
            raise CommandError(f"--{name} {value}: must be at least 0")
        if value and not chosen.trains:
            raise CommandError(f"--{name} {value}: '{options.name}' does not train")
    if options.nncodec is not None and options.name != "codec":
        raise CommandError(f"--nncodec {options.nncodec}: '{options.name}' compares no coders")
    set_threads(options.threads)
    keep_freed_memory()
    path = chosen.run(
        Asked(
            results=options.results,
            repeats=options.repeats or chosen.repeats,
            only=options.only,
            again=options.again,
            epochs=options.epochs,
            seeds=options.seeds,
            runs=options.runs,
            nncodec=options.nncodec,
        )
    )
    print(f"written to {path}")
    return 0


@dataclass(frozen=True)
class DocsArguments:
    """How to treat the documents.

    Args:
        root: the project's folder.
        check: change nothing; fail when a table or figure is out of step with results/.
    """

    root: Path = Path(".")
    check: bool = False


def docs(words: Sequence[str]) -> int:
    """`docs`: regenerate the docs' tables and figures."""
    from evidence.docs import regenerate

    options = read(
        DocsArguments,
        words,
        prog="python -m evidence docs",
        description=(
            "Regenerate the tables and figures of README.md and docs/ from results/.\n\n"
            "examples:\n  python -m evidence docs\n  python -m evidence docs --check"
        ),
    )
    changed = regenerate(options.root, check=options.check)
    for path in changed:
        print(("out of step: " if options.check else "written: ") + str(path))
    return 1 if options.check and changed else 0
