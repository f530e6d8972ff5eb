"""`python -m evidence bench sweep`: a row per executor, measured against the same trials one after another."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence.benches import sweep
from evidence.benches.book import Asked
from paring.cli.experiment import Experiment
from paring.cli.results import load
from paring.cli.sweep import Serial
from paring.train import Recipe


def test_rows_are_measured_once_and_compare_equal_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    monkeypatch.setattr(sweep, "Processes", lambda workers, retries: Serial(retries=retries))
    monkeypatch.setattr(sweep, "fetch", lambda name: None)
    monkeypatch.setattr(
        sweep,
        "trials",
        lambda count, epochs: [
            Experiment("lenet_300_100", "digits", recipe=Recipe(epochs=epochs, batch=400, seed=s)) for s in range(count)
        ],
    )
    asked = Asked(tmp_path, repeats=1, seeds=2, epochs=1, runs=tmp_path / "runs")
    (row,) = load(sweep.run(asked)).rows
    assert row["run"] == "processes/2 workers/2 trials of 1 epochs"
    assert row["ratio"] == row["seconds"] / row["serial_seconds"]
    assert row["trial_seconds"] == row["serial_seconds"] / 2
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"

    def run(self: Experiment, root: Path, **_: Any) -> dict[str, Any]:
        calls.append(self.recipe.seed)
        return {"seed": self.recipe.seed, "error": len(calls)}

    calls: list[int] = []
    monkeypatch.setattr(Experiment, "run", run)
    assert load(sweep.run(asked)).rows == (row,)
    assert calls == []
    with pytest.raises(RuntimeError, match="came out differently"):
        sweep.run(replace(asked, again=True))


def test_trials_differ_in_their_seed_only() -> None:
    grid = sweep.trials(3, 2)
    assert [one.recipe.seed for one in grid] == [0, 1, 2]
    assert len({replace(one, recipe=replace(one.recipe, seed=0)).key for one in grid}) == 1
    assert grid[0].recipe.epochs == 2
