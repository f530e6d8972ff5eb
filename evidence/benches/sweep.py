"""`python -m evidence bench sweep`: the same trials one after another, and on two workers: wall-clock time, start-up included.

A trial is a training of LeNet-5-Caffe on MNIST with L0 gates, a seed each, on one thread. Every sweep starts from nothing,
in a folder of its own. `--seeds` is the number of trials and `--epochs` the length of each; a trial should take a minute
or more, as the start of its process (a few seconds) counts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from evidence.benches.book import Asked, Book
from paring.cli.experiment import Experiment
from paring.cli.sweep import Executor, Processes, Ray, Serial, run_trials
from paring.data import fetch
from paring.methods import L0, Budget
from paring.train import Recipe

WORKERS = 2
_MODEL, _DATA = "lenet5_caffe", "mnist"
_EPOCHS, _TRIALS = 4, 4
_TIMES = ("train_seconds", "train_cpu_seconds", "finish_seconds")


def trials(count: int, epochs: int) -> list[Experiment]:
    """The trials: the same training with different seeds."""
    method = L0(price=Budget(params=0.25, macs=0.25), at="units")
    return [Experiment(_MODEL, _DATA, method, Recipe(epochs=epochs, batch=100, seed=seed)) for seed in range(count)]


def run(asked: Asked) -> Path:
    """Measure every executor that is there and of which the results file lacks a row.

    Raises:
        RuntimeError: a trial failed, or came out differently on different executors.
    """
    book = Book(asked, "sweep")
    grid = trials(asked.seeds or _TRIALS, asked.epochs or _EPOCHS)
    made: dict[str, Executor] = {"processes": Processes(WORKERS, retries=0), "ray": Ray(WORKERS, retries=0)}
    if importlib.util.find_spec("ray") is None:
        print("ray is not installed (extra 'sweep'): left out")
        del made["ray"]
    names = {name: f"{name}/{WORKERS} workers/{len(grid)} trials of {grid[0].recipe.epochs} epochs" for name in made}
    wanted = [name for name in made if book.wants(names[name])]
    if not wanted:
        return book.close()
    fetch(_DATA)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial, expected = _timed(grid, Serial(retries=0), asked.runs)
        print(f"one after another: {serial:.1f} s", flush=True)
        for name in wanted:
            taken, rows = _timed(grid, made[name], asked.runs)
            if rows != expected:
                raise RuntimeError(f"trials on {name} came out differently than one after another")
            book.add(_row(names[name], name, grid, serial, taken))
            print(f"{name}: {taken:.1f} s, {taken / serial:.2f} of the serial time", flush=True)
    finally:
        torch.set_num_threads(threads)
    return book.close()


def _row(run: str, executor: str, grid: list[Experiment], serial: float, taken: float) -> dict[str, Any]:
    return {
        "run": run,
        "executor": executor,
        "workers": WORKERS,
        "trials": len(grid),
        "epochs": grid[0].recipe.epochs,
        "model": _MODEL,
        "data": _DATA,
        "serial_seconds": serial,
        "trial_seconds": serial / len(grid),
        "seconds": taken,
        "ratio": taken / serial,
    }


def _timed(grid: list[Experiment], executor: Executor, runs: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a sweep from nothing, and its rows without times, by seed."""
    folder = runs / f"bench-sweep-{os.getpid()}"
    began = time.perf_counter()
    try:
        ended = list(run_trials(grid, executor, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    taken = time.perf_counter() - began
    for experiment, outcome in ended:
        if outcome.error is not None:
            raise RuntimeError(f"{experiment.name} failed: {outcome.error}\n{outcome.trace}")
    rows = [{key: value for key, value in outcome.value.items() if key not in _TIMES} for _, outcome in ended]
    return taken, sorted(rows, key=lambda row: int(row["seed"]))
