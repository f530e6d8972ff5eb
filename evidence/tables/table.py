"""A table of a paper: a list of experiments and quoted rows, run one by one, resumable, out of one command."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.tables.reduced import check_devices, reduced
from paring.cli.experiment import Experiment
from paring.cli.results import Results, ResultsError
from paring.cli.sweep.executor import Executor
from paring.cli.sweep.processes import Processes
from paring.cli.sweep.rows import add_rows, set_aside, sort_rows
from paring.cli.sweep.trials import run_trials, trial


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
        after: what follows from all rows together (which of them is at zero loss, say); applied in the end.
    """

    name: str
    about: str
    entries: Callable[[int], list[Entry]]
    quoted: tuple[dict[str, Any], ...] = ()
    seeds: int = 3
    after: Callable[[Results], Results] | None = None


def shortened(entry: Entry, epochs: int | None, examples: int = 0) -> Entry:
    """The entry with another number of epochs, or with few examples (a check, not the table); the label says so."""
    if epochs is None and not examples:
        return entry
    experiment = reduced(entry.experiment, epochs, examples)
    long = [f"{epochs} epochs"] * (epochs is not None) + [f"{examples:,} examples"] * (examples > 0)
    moved = "" if experiment.recipe.device == entry.experiment.recipe.device else f" on {experiment.recipe.device}"
    name, colon, setting = entry.label.partition(":")
    return Entry(f"{name} ({', '.join(long)}{moved}){colon}{setting}", experiment)


def is_shortened(label: str) -> bool:
    """Whether a row's label is one of a check with fewer epochs or examples."""
    return re.search(r"\((\d+ epochs|[\d,]+ examples)[^)]*\)", label) is not None


def run_table(
    table: Table,
    *,
    seeds: int,
    runs: Path,
    results: Path,
    command: str,
    epochs: int | None = None,
    examples: int = 0,
    only: str = "",
    jobs: int = 1,
    executor: Executor | None = None,
    progress: bool = True,
) -> Results:
    """Run what is missing and write the results file after every run; in the end its rows are in the table's order.

    Rows that the results file already holds are not run again, also when their run folders are gone. Rows of settings that
    the table no longer has would be taken for further seeds; they go to NAME.outdated.json.

    Args:
        table: which table.
        seeds: seeds 0 to seeds − 1.
        runs: folder of run folders.
        results: folder of results files.
        command: how to make the table again; goes into the file.
        epochs: run for so many epochs instead of the paper's (the rows then say so; see `reduced`).
        examples: look at no more than so many of each part of the data (the rows then say so); 0 takes all.
        only: run only the entries whose label, or model and label, contain this text.
        jobs: runs at a time; one goes on in this process, several in processes of their own with one thread each.
        executor: runs them instead (on Ray, say).
        progress: show progress.

    Raises:
        ResultsError: the results file is damaged, or is that of something else.
        RuntimeError: a run needs a device that is not there, and none was started; or some of several runs at a time
            failed, and the rows of the others are in the file.
    """
    path = results / f"{table.name}.json"
    names = [f"quoted/{row['model']}/{row['method']}" for row in table.quoted]
    quoted = [{"run": name, "source": "quoted", **row} for name, row in zip(names, table.quoted, strict=True)]
    found = add_rows(path, command, quoted)
    _check_rows(path, found)
    outdated = _outdated(table, found)
    if outdated:
        other = path.with_suffix(".outdated.json")
        found = set_aside(path, other, outdated)
        print(
            f"{table.name}: {len(outdated)} rows are of settings that the table no longer has; they are now in {other}",
            file=sys.stderr,
        )
    asked = [entry for seed in range(seeds) for entry in table.entries(seed)]
    wanted = [
        shortened(entry, epochs, examples) for entry in asked if only in f"{entry.experiment.model} {entry.label}"
    ]
    known = {row.get("run") for row in found.rows}
    missing = [entry for entry in wanted if entry.experiment.key not in known]
    check_devices(table.name, (entry.experiment for entry in missing))
    if progress:
        print(
            f"{table.name}: {len(wanted) - len(missing)} of {len(wanted)} runs are there, {len(missing)} to do",
            file=sys.stderr,
        )
    if executor is None and jobs > 1:
        executor = Processes(jobs)
    with closing(_execute(missing, runs, executor, progress)) as ended:
        for entry, row in ended:
            found = add_rows(path, command, [{**row, "method": entry.label}])
            if progress:
                print(
                    f"{entry.experiment.model} {entry.label} seed {row['seed']}: {row['architecture']}  error {row['error']:.2f} %",
                    file=sys.stderr,
                    flush=True,
                )
    if table.after is not None and wanted:
        found = add_rows(path, command, table.after(found).rows)
    return sort_rows(path, [entry.experiment.key for entry in [*asked, *wanted]])


def _check_rows(path: Path, found: Results) -> None:
    for index, row in enumerate(found.rows):
        missing = [key for key in ("run", "method", "seed") if row.get(key) is None]
        if row["source"] == "measured" and missing:
            raise ResultsError(f"{path}: row {index} is none of a table: '{missing[0]}' is not there")


def _outdated(table: Table, found: Results) -> set[str]:
    """Runs of the rows that no entry of the table makes; checks with fewer epochs or examples are none of them."""
    rows = [row for row in found.rows if row["source"] == "measured" and not is_shortened(row["method"])]
    made = {entry.experiment.key for seed in {row["seed"] for row in rows} for entry in table.entries(seed)}
    return {row["run"] for row in rows} - made


def _execute(
    entries: list[Entry], runs: Path, executor: Executor | None, progress: bool
) -> Generator[tuple[Entry, dict[str, Any]], None, None]:
    if executor is None:
        later = []
        for entry in entries:
            row = trial(entry.experiment, runs, wait=False, progress=progress)
            if row is None:
                later.append(entry)
            else:
                yield entry, row
        if later and progress:
            print(f"waiting for runs of other processes: {len(later)}", file=sys.stderr, flush=True)
        for entry in later:
            row = trial(entry.experiment, runs, wait=True, progress=progress)
            assert row is not None
            yield entry, row
        return
    by_key = {entry.experiment.key: entry for entry in entries}
    failed = []
    with closing(run_trials((entry.experiment for entry in entries), executor, runs)) as ended:
        for experiment, outcome in ended:
            if outcome.error is None:
                yield by_key[experiment.key], outcome.value
                continue
            failed.append(f"{runs / experiment.name}: {outcome.error}")
            print(f"{failed[-1]}\n{outcome.trace}", file=sys.stderr, flush=True)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(entries)} runs failed; the others are in the table:\n" + "\n".join(failed)
        )
