"""Equal cost and equal tuning: every method has the same number of trainings to choose from, and the table takes the choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence.tables import TABLES
from evidence.tables.savarese2020 import LONG, SCALES
from evidence.tables.savarese2020_equal import DENSE_SEEDS, DENSITIES, MODEL, SEEDS, TUNED, WAYS
from paring.cli.results import load

ROOT = Path(__file__).resolve().parents[2]
CASES = [(name, density) for name in WAYS for density in DENSITIES]
TUNED_HERE = [(name, density) for name, density in CASES if name != "L0"]


@pytest.mark.parametrize(("name", "density"), TUNED_HERE)
def test_the_setting_has_the_lowest_validation_error_of_the_committed_rows(name: str, density: float) -> None:
    way, share = WAYS[name], f"{100 * density:g} %"
    errors = {
        row["method"]: row["validation_error"] for row in load(ROOT / "results" / "savarese2020-tuning.json").rows
    }
    found = {one: errors[f"{name}, {way.setting.format(one)}: {share}"] for one in way.candidates[density]}
    assert found[TUNED[name][density]] == min(found.values()), found


def test_all_methods_are_tuned_by_as_many_trainings_that_never_look_at_the_test_set_or_fashion_mnist() -> None:
    assert {len(WAYS[name].candidates[density]) for name, density in TUNED_HERE} == {4}
    assert TUNED["L0"] == SCALES[MODEL].long_starts, "chosen in savarese2020-starts, by more trainings"
    entries = TABLES["savarese2020-tuning"].entries(0)
    assert {(one.experiment.data, one.experiment.validation > 0) for one in entries} == {("mnist", True)}
    assert len({one.experiment.key for one in entries}) == len(entries) == 4 * len(TUNED_HERE)


def test_all_methods_cost_four_trainings_and_take_their_choice() -> None:
    steps = LONG * SCALES[MODEL].recipe.epochs
    entries = [one for seed in range(DENSE_SEEDS) for one in TABLES["savarese2020-equal"].entries(seed)]
    assert len({one.experiment.key for one in entries}) == len(entries)
    for one in entries:
        method, recipe = one.experiment.method, one.experiment.recipe
        name, _, share = one.label.partition(": ")
        assert not one.experiment.validation
        assert recipe.epochs * method.rounds in (steps, steps * (method.rounds if name == "dense" else 1))
        if name != "dense":
            density = float(share.removesuffix(" %")) / 100
            assert method == WAYS[name].method(density, TUNED[name][density])
    dense = [one for one in entries if one.label == "dense"]
    assert (len(dense), len(entries) - len(dense)) == (2 * DENSE_SEEDS, 2 * SEEDS * len(CASES))
