"""`python -m evidence table ftprop-toy`: its rows, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evidence.tables import COMPUTED, ftprop_toy
from evidence.views.views import VIEWS, find
from paring.cli.results import Results, load
from paring.data import load as load_data


def _lines(rows: list[dict[str, Any]], view: str) -> list[str]:
    measured = [{"run": str(index), "source": "measured", **row} for index, row in enumerate(rows)]
    return find(VIEWS, "ftprop-toy", view)(
        Results("ftprop-toy", "python -m evidence table ftprop-toy", measured)
    ).splitlines()


@pytest.mark.slow
def test_every_part_is_made_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tuple(
        task for task in ftprop_toy.TASKS if task.label in ("exclusive or, hidden 1", "exclusive or, hidden 2")
    )
    monkeypatch.setattr(ftprop_toy, "TASKS", tasks)
    monkeypatch.setattr(ftprop_toy, "FEASIBLE", tasks[1:])
    monkeypatch.setattr(ftprop_toy, "VARIANTS", {"soft hinge": ftprop_toy.VARIANTS["soft hinge"]})
    monkeypatch.setattr(ftprop_toy, "load_data", lambda name: load_data("digits"))
    for name, value in (("_BATCHES", 60), ("_BUDGET", 60), ("_EPOCHS", 1), ("_SHOWN", 60), ("_PAIRS", 120)):
        monkeypatch.setattr(ftprop_toy, name, value)
    made = COMPUTED["ftprop-toy"]
    made.run(tmp_path, tmp_path, 1, "python -m evidence table ftprop-toy --seeds 1")
    path = tmp_path / "ftprop-toy.json"
    first = path.read_text()
    made.run(tmp_path, tmp_path, 1, "python -m evidence table ftprop-toy --seeds 1")
    assert path.read_text() == first
    rows = {row["run"]: row for row in load(path).rows}
    assert len(rows) == 2 + 1 + 1 + 2 * 2
    assert rows["search/exclusive or, hidden 1/0"]["outcome"] == "infeasible"
    assert rows["search/exclusive or, hidden 2/0"]["outcome"] == "found by search"
    trained = rows["training/exclusive or, hidden 2/soft hinge/1"]
    assert trained["solved"] == trained["seeds"] == 1
    assert trained["batches"] <= 60
    compared = rows["targets/exclusive or, hidden 2/1"]
    assert compared["brute_targets"] >= compared["brute_best"]
    assert compared["found"] == 1.0
    before, after = (rows[f"network/0/{epoch}/1"] for epoch in (0, 1))
    assert before["train_error"] > after["train_error"]
    assert len(before["right_by_size"]) == 4
    for view in ("rows", "training", "targets", "network"):
        text = VIEWS["ftprop-toy", view](load(path)).splitlines()
        assert len({line.count("|") for line in text}) == 1
        assert len(text) == {"rows": 4, "training": 3, "targets": 3, "network": 6}[view]


def test_search_counts_outcomes() -> None:
    row = {"part": "search", "task": "xor"}
    rows = [
        {**row, "outcome": "found by search", "programmes": 10, "seconds": 0.5, "margin": 0.25},
        {**row, "outcome": "notfound", "programmes": 800, "seconds": 9.0, "margin": None},
        {**row, "outcome": "found by search", "programmes": 30, "seconds": 1.5, "margin": 0.5},
    ]
    assert _lines(rows, "rows")[2] == "| xor | found 2/3, not found 1/3 | 30 | 1.5 s | 0.25 |"


def test_training_puts_tasks_side_by_side() -> None:
    row = {"part": "training", "seeds": 5}
    rows = [
        {**row, "task": "a", "variant": "hinge", "solved": 0, "batches": None},
        {**row, "task": "b", "variant": "hinge", "solved": 3, "batches": 25.0},
        {**row, "task": "b", "variant": "log", "solved": 5, "batches": 15.0},
    ]
    lines = _lines(rows, "training")
    assert lines[0] == "| variant | a | b | all |"
    assert lines[2:] == ["| hinge | 0/5 | 3/5 (25) | 3/10 |", "| log | – | 5/5 (15) | 5/5 |"]


def test_network_means_over_seeds() -> None:
    row = {"part": "network", "depth": 1, "epoch": 2, "captured": 0.8, "captured_by_size": [0.5, 1.0]}
    row |= {"loss": 0.5, "adopted": [{"share": 0.1, "targets": 0.25, "random": 0.75}]}
    rows = [{**row, "seed": 0, "right": 0.6, "right_by_size": [None, 0.7]}]
    rows += [{**row, "seed": 1, "right": 0.8, "right_by_size": [0.5, 0.9]}]
    lines = _lines(rows, "network")
    assert "10 % moved to targets / at random" in lines[0]
    assert lines[2] == "| 1 | 2 | 70 % | 50 80 % | 80 % | 50 100 % | 0.500 | 0.250 / 0.750 |"


def test_tasks_are_what_they_are_called() -> None:
    tasks = {task.label: task for task in ftprop_toy.TASKS}
    x, y = tasks["parity of 3, hidden 3"].make(5)
    assert x.shape == (8, 3)
    assert torch.equal(y, x[:, 0] * x[:, 1] * x[:, 2])
    one, two = (tasks["random, 20 points, hidden 6"].make(seed) for seed in (0, 1))
    assert one[0].shape == (20, 4)
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[0], tasks["random, 20 points, hidden 3"].make(0)[0])
    assert set(one[1].tolist()) == {-1.0, 1.0}
