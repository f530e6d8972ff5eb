"""Where L0's gates begin: chosen by validation errors that are there to read, and taken by every table."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from evidence.tables import TABLES
from evidence.tables.savarese2020 import LONG, SCALES
from evidence.tables.savarese2020_starts import HELD_OUT, candidates
from paring.cli.results import load
from paring.methods import L0, Budget

CHANCE = 85.0  # percent; an error above this is taken for that of guessing among ten classes
ROOT = Path(__file__).resolve().parents[2]


def _choices() -> dict[tuple[str, int, float], float]:
    """Network, epochs and density → the start that `savarese2020-small` gives L0."""
    return {
        (model, times * scale.recipe.epochs, density): keep
        for model, scale in SCALES.items()
        for times, starts in ((1, scale.starts), (LONG, scale.long_starts))
        for density, keep in starts.items()
    }


@pytest.mark.parametrize(("task", "keep"), _choices().items(), ids=str)
def test_the_start_has_the_lowest_validation_error_of_the_committed_rows(
    task: tuple[str, int, float], keep: float
) -> None:
    model, epochs, density = task
    errors: dict[float, list[float]] = {}
    for row in load(ROOT / "results" / "savarese2020-starts.json").rows:
        name, _, setting = row["method"].partition(": ")
        if (row["model"], row["epochs"], setting) == (model, epochs, f"{100 * density:g} %"):
            errors.setdefault(float(name.removeprefix("L0 from ").partition(",")[0]), []).append(
                row["validation_error"]
            )
    assert set(errors) == set(candidates(density))
    assert {len(found) for found in errors.values()} == {2}
    means = {start: statistics.fmean(found) for start, found in errors.items()}
    assert means[keep] == min(means.values()) or (min(means.values()) > CHANCE and keep == 0.5), means


def test_the_choice_never_looks_at_the_test_set_or_at_fashion_mnist() -> None:
    entries = [entry for seed in range(2) for entry in TABLES["savarese2020-starts"].entries(seed)]
    assert {entry.experiment.data for entry in entries} == {"mnist"}
    assert {entry.experiment.validation for entry in entries} == {HELD_OUT}
    assert (
        len({entry.experiment.key for entry in entries})
        == len(entries)
        == sum(2 * len(candidates(density)) for *_, density in _choices())
    )


@pytest.mark.parametrize("name", ["savarese2020-small", "savarese2020-ablations"])
def test_every_l0_begins_where_it_was_chosen(name: str) -> None:
    choices = _choices()
    found: dict[Any, set[float]] = {}
    for entry in TABLES[name].entries(0):
        method = entry.experiment.method
        if isinstance(method, L0):
            assert isinstance(method.price, Budget)
            task = (entry.experiment.model, entry.experiment.recipe.epochs, method.price.params)
            assert method.keep is None or isinstance(method.keep, float)
            found.setdefault(task, set()).add(0.5 if method.keep is None else method.keep)
    assert found == {task: {choices[task]} for task in found}
    assert len(found) == (len(choices) if name == "savarese2020-small" else 2)
