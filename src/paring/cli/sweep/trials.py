"""Experiments as jobs: one that another process works on is put off to the end, and then waited for."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from paring.cli.experiment import Busy, Experiment
from paring.cli.sweep.executor import Executor, Job, Outcome

_LOOK = 1.0  # seconds between two looks at a run that another process works on


def trial(experiment: Experiment, runs: Path, wait: bool, progress: bool = False) -> dict[str, Any] | None:
    """Run an experiment, or go on with it; its row. None: another process works on it, and `wait` is not asked for."""
    while True:
        try:
            return experiment.run(runs, progress=progress)
        except Busy:
            if not wait:
                return None
            time.sleep(_LOOK)


def run_trials(
    experiments: Iterable[Experiment], executor: Executor, runs: Path
) -> Generator[tuple[Experiment, Outcome], None, None]:
    """Run experiments, each once, and yield how each ended; a failed one does not stop the others.

    Args:
        experiments: what is to be run; equal ones count once.
        executor: what runs them.
        runs: folder of run folders.
    """
    runs = runs.resolve()  # workers may have another working directory
    wanted = {experiment.key: experiment for experiment in experiments}
    for wait in (False, True):
        jobs = [Job(key, trial, (experiment, runs, wait)) for key, experiment in wanted.items()]
        with closing(executor.run(jobs)) as outcomes:
            for outcome in outcomes:
                if outcome.error is not None or outcome.value is not None:
                    yield wanted.pop(outcome.job), outcome
