"""A table of a paper: a list of experiments and quoted rows, run one by one, resumable, out of one command."""

from __future__ import annotations

import fcntl
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paring.lab.experiment import Experiment
from paring.lab.results import Results, load


@dataclass(frozen=True)
class Entry:
    """One measured row to be: an experiment under the label that the table shows."""

    label: str
    experiment: Experiment


@dataclass(frozen=True)
class Table:
    """A table that a command reproduces.

    Args:
        name: of the command and of the results file.
        about: one line for `--help`.
        entries: the experiments for one seed.
        quoted: rows of the paper, with `"source": "quoted"`.
        seeds: how many seeds are asked for by default.
    """

    name: str
    about: str
    entries: Callable[[int], list[Entry]]
    quoted: tuple[dict[str, Any], ...] = ()
    seeds: int = 3


def shortened(entry: Entry, epochs: int | None) -> Entry:
    """The entry with another number of epochs (a check, not the table); the label says so."""
    if epochs is None:
        return entry
    experiment = entry.experiment
    recipe = replace(experiment.recipe, epochs=epochs, warmup=0.0)
    tuned = experiment.finetune and replace(experiment.finetune, epochs=max(1, epochs // 2), warmup=0.0)
    return Entry(f"{entry.label} ({epochs} epochs)", replace(experiment, recipe=recipe, finetune=tuned))


def run_table(
    table: Table,
    *,
    seeds: int,
    runs: Path,
    results: Path,
    command: str,
    epochs: int | None = None,
    only: str = "",
    jobs: int = 1,
    progress: bool = True,
) -> Results:
    """Run what is missing and write the results file after every run.

    Rows that the results file already holds are not run again, also when their run folders are gone.

    Args:
        table: which table.
        seeds: seeds 0 to seeds − 1.
        runs: folder of run folders.
        results: folder of results files.
        command: how to make the table again; goes into the file.
        epochs: run for so many epochs instead of the paper's (the rows then say so).
        only: run only the entries whose label, or model and label, contain this text.
        jobs: processes; each uses one thread.
        progress: show progress.
    """
    path = results / f"{table.name}.json"
    names = [f"quoted/{row['model']}/{row['method']}" for row in table.quoted]
    quoted = [{"run": name, "source": "quoted", **row} for name, row in zip(names, table.quoted, strict=True)]
    found = _add(path, command, quoted)
    wanted = [shortened(entry, epochs) for seed in range(seeds) for entry in table.entries(seed)]
    wanted = [entry for entry in wanted if only in f"{entry.experiment.model} {entry.label}"]
    known = {row.get("run") for row in found.rows}
    missing = [entry for entry in wanted if entry.experiment.key not in known]
    if progress:
        print(
            f"{table.name}: {len(wanted) - len(missing)} of {len(wanted)} runs are there, {len(missing)} to do",
            file=sys.stderr,
        )
    for entry, row in _execute(missing, runs, jobs, progress):
        found = _add(path, command, [{**row, "method": entry.label}])
        if progress:
            print(
                f"{entry.experiment.model} {entry.label} seed {row['seed']}: {row['architecture']}  error {row['error']:.2f} %",
                file=sys.stderr,
                flush=True,
            )
    return found


def _add(path: Path, command: str, rows: Iterable[dict[str, Any]]) -> Results:
    """Merge rows into the file as it is now: other processes may be adding to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.stem}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = replace(load(path), command=command) if path.exists() else Results(path.stem, command)
        for row in rows:
            found = found.merge(row)
        found.save(path)
    return found


def _execute(entries: list[Entry], runs: Path, jobs: int, progress: bool) -> Iterable[tuple[Entry, dict[str, Any]]]:
    if jobs == 1:
        for entry in entries:
            yield entry, entry.experiment.run(runs, progress=progress)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: dict[Future[dict[str, Any]], Entry] = {
            pool.submit(entry.experiment.run, runs, progress=progress): entry for entry in entries
        }
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield pending.pop(future), future.result()
