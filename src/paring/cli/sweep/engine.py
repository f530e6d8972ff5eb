"""A sweep: a grid of experiments, each done once, in any order, by any executor, whatever is interrupted or fails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paring.cli.config import plain
from paring.cli.experiment import Experiment
from paring.cli.human import exact, percent
from paring.cli.index_page import PAGE, write_index
from paring.cli.results import Results
from paring.cli.sweep.executor import Executor, Outcome, Serial
from paring.cli.sweep.rows import CONFIG, add_rows, as_csv, flat, short, varying
from paring.cli.sweep.sweep_page import sweep_page
from paring.cli.sweep.sweep_progress import Progress
from paring.cli.sweep.trials import run_trials
from paring.train import write_atomic

ERROR = "error.txt"


@dataclass(frozen=True)
class Failure:
    """A trial that failed in its last attempt.

    Attributes:
        experiment: what was to be run.
        reason: one line.
        attempts: how often it was tried.
        folder: of the run; its `error.txt` has the traceback.
    """

    experiment: Experiment
    reason: str
    attempts: int
    folder: Path


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: the table (with rows of earlier grids under the same name), and the trials that failed."""

    results: Results
    failures: tuple[Failure, ...]


def sweep(
    experiments: Iterable[Experiment],
    *,
    executor: Executor | None = None,
    runs: str | Path = "runs",
    path: str | Path = "runs/sweeps/sweep.json",
    command: str = "paring.cli.sweep.sweep(...)",
    progress: bool = True,
) -> Swept:
    """Run what is missing of a grid of experiments and put all of it into one table.

    A trial is done once: one that is in the table, or finished in its run folder, is read; one that was stopped goes on
    from its last checkpoint; one that another process works on is put off to the end and then waited for, and its result
    shared. A trial that fails is tried again (see `Executor`), and in the end listed; the others go on.

    The table is written after every trial: `path` in the form of `paring.cli.results`, with each row's settings under
    "config". Beside it, at the end (also of an interrupted sweep), stand the same rows as .csv and as an .html page.

    Args:
        experiments: the grid; equal ones count once.
        executor: what runs them; by default `Serial()`, one after another.
        runs: folder of run folders.
        path: the table, a .json file.
        command: what a reader types to make the table again.
        progress: show progress on stderr.

    Raises:
        ValueError: no experiments, a table that is no .json file, or one that is there and cannot be read.
    """
    executor, runs, path = executor or Serial(), Path(runs), Path(path)
    grid = {experiment.key: experiment for experiment in experiments}
    if not grid:
        raise ValueError("a sweep needs at least one experiment")
    if path.suffix != ".json":
        raise ValueError(f"the table {path}: its name must end in .json")
    table = add_rows(path, command, [])
    there = {str(row.get("run")): row for row in table.rows}
    found = {key: row for key, one in grid.items() if (row := there.get(key) or _finished(one, runs)) is not None}
    table = add_rows(path, command, [_row(grid[key], row) for key, row in found.items() if there.get(key) != row])
    missing = [experiment for key, experiment in grid.items() if key not in found]
    labels = _labels(grid)
    failures: list[Failure] = []
    try:
        bar = Progress(path.stem, len(grid), len(found), executor.workers, progress)
        with bar, closing(run_trials(missing, executor, runs)) as ended:
            for experiment, outcome in ended:
                if outcome.error is None:
                    (runs / experiment.name / ERROR).unlink(missing_ok=True)
                    table = add_rows(path, command, [_row(experiment, outcome.value)])
                else:
                    failures.append(_failure(experiment, outcome, runs))
                bar.ended(f"{labels[experiment.key]}: {_end(outcome)}", outcome.seconds, outcome.error is not None)
    finally:
        _write_views(path, _in_order(table, list(grid)), failures, runs)
    return Swept(table, tuple(failures))


def _finished(experiment: Experiment, runs: Path) -> dict[str, Any] | None:
    """The finished result; None also when it is damaged: running the trial will then say so."""
    try:
        return experiment.result(runs)
    except ValueError:
        return None


def _row(experiment: Experiment, row: dict[str, Any]) -> dict[str, Any]:
    return {**row, CONFIG: plain(experiment)}


def _failure(experiment: Experiment, outcome: Outcome, runs: Path) -> Failure:
    folder = runs / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ERROR, f"{outcome.error}\nafter {outcome.attempts} attempts\n\n{outcome.trace}")
    return Failure(experiment, str(outcome.error), outcome.attempts, folder)


def _labels(grid: Mapping[str, Experiment]) -> dict[str, str]:
    """What sets each trial apart: "density 0.1, seed 2"."""
    found = {key: flat(plain(experiment)) for key, experiment in grid.items()}
    names = short(varying(list(found.values())))
    told = {key: [f"{last} {one[name]}" for name, last in names.items() if name in one] for key, one in found.items()}
    return {key: ", ".join(parts) or grid[key].name for key, parts in told.items()}


def _end(outcome: Outcome) -> str:
    """How a trial ended, in a line."""
    if outcome.error is not None:
        return f"failed, tried {outcome.attempts} times: {outcome.error}"
    return f"error {percent(outcome.value.get('error'))}, {exact(outcome.value.get('parameters'))} parameters"


def _in_order(table: Results, keys: list[str]) -> Results:
    """The table in the order of the grid, which no order of ending decides; rows of earlier grids come first."""
    place = {key: index for index, key in enumerate(keys)}
    return replace(table, rows=sorted(table.rows, key=lambda row: place.get(str(row.get("run")), -1)))


def _write_views(path: Path, table: Results, failures: list[Failure], runs: Path) -> None:
    write_atomic(path.with_suffix(".csv"), as_csv(table.rows))
    failed = [(one.experiment.name, one.reason, one.attempts, str(one.folder)) for one in failures]

    def link(row: dict[str, Any]) -> str:
        """The page of the run if somebody made one (`paring report`), else its folder."""
        folder = runs / "-".join(str(row.get(key)) for key in ("model", "data", "method", "run"))
        page = folder / PAGE
        return os.path.relpath(page if page.is_file() else folder, path.parent) if folder.is_dir() else ""

    write_atomic(path.with_suffix(".html"), sweep_page(table, failed, link))
    if runs.is_dir():
        write_index(runs)
