"""`python -m evidence bench training-speed`: two trainings in turns are the two trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evidence.benches import training_speed
from evidence.benches.book import Asked
from evidence.benches.training_speed import Race, Runner, compare, shrunk
from marks import CUT_SHORT
from paring.cli.experiment import Experiment
from paring.cli.results import load as load_results
from paring.core import Places, Stack
from paring.data import Dataset, load
from paring.methods import L0, Dense
from paring.testing import same_state
from paring.train import Recipe, fit

pytestmark = CUT_SHORT

SHRUNK = shrunk(0.4)
RACE = Race(
    "lenet_300_100", "digits", Recipe(batch=100, lr=2e-3, ema=0.9), budgets=(0.4,), closing=1, epochs=3, measured=False
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", validation=200)


def test_both_are_measured_and_the_small_one_is_small(digits: Dataset) -> None:
    dense, small = compare(RACE, 3, 0, None, data=digits)
    assert (dense["method"], small["method"]) == ("dense", SHRUNK)
    assert dense["parameters"] == 50_610
    assert dense["ratio"] == dense["ratio_cpu"] == dense["ratio_200"] == 1
    assert small["macs"] <= 0.4 * dense["macs"]
    assert small["parameters"] <= 0.42 * dense["parameters"]
    assert small["shrinks"] >= 1
    assert small["ratio"] == dense["train_seconds"] / small["train_seconds"]
    assert small["ratio_200"] == dense["seconds_200"] / small["seconds_200"]
    assert small["error"] < 30
    for row in (dense, small):
        assert row["seconds_200"] > row["train_seconds"] > 0
        assert row["epochs"] == 3


def test_validation_leaves_the_test_set_alone(digits: Dataset) -> None:
    hidden = Dataset(**{**vars(digits), "test": digits.test.__class__(digits.test.x[:0], digits.test.y[:0])})
    for row in compare(RACE, 2, 0, None, data=hidden, validation=200):
        assert "error" not in row
        assert 0 <= row["validation_error"] < 100


def test_taking_turns_changes_neither(digits: Dataset) -> None:
    runners = {
        name: Runner(Experiment(RACE.model, RACE.data, method, Recipe(epochs=2, batch=100)), digits, None)
        for name, method in RACE.methods(2).items()
    }
    torch.manual_seed(7)
    for _ in range(2):
        for runner in runners.values():
            runner.epoch()
    experiment = Experiment(RACE.model, RACE.data, Dense(), Recipe(epochs=2, batch=100))
    alone = fit(experiment.network(digits), experiment.method, digits, experiment.recipe, progress=False)
    assert same_state(runners["dense"].trainer.end().net.state_dict(), alone.net.state_dict())


def test_an_interrupted_pair_goes_on(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = list(compare(RACE, 3, 1, None, data=digits))
    done: list[int] = []
    epoch = Runner.epoch

    def counted(self: Runner) -> dict[str, object]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "epoch", counted)
        with pytest.raises(KeyboardInterrupt):
            list(compare(RACE, 3, 1, tmp_path, data=digits))
    rest: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "epoch", lambda self: rest.append(1) or epoch(self))
        resumed = list(compare(RACE, 3, 1, tmp_path, data=digits))
    assert len(rest) == 3
    assert [row["error"] for row in resumed] == [row["error"] for row in straight]
    assert resumed[0]["train_seconds"] > 0


def test_what_is_there_is_not_run_again_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset
) -> None:
    monkeypatch.setattr(training_speed, "RACES", (RACE,))
    monkeypatch.setattr(training_speed, "load_data", lambda *_, **__: digits)
    asked = Asked(tmp_path, 1, epochs=2, seeds=1, runs=tmp_path / "runs")
    first = load_results(training_speed.run(asked)).rows
    assert [row["run"] for row in first] == [
        f"lenet_300_100/channels last/as they are/{name}/2 epochs/seed 0" for name in ("dense", SHRUNK)
    ]
    again = load_results(training_speed.run(replace(asked, again=True))).rows
    assert [row["error"] for row in again] == [row["error"] for row in first]
    assert all(now["train_seconds"] != then["train_seconds"] for now, then in zip(again, first, strict=True))
    monkeypatch.setattr(training_speed, "compare", None)
    assert load_results(training_speed.run(asked)).rows == again


def test_the_rest_of_200_epochs_is_added_at_the_last_pace() -> None:
    assert training_speed._whole([4.0, 4.0, 1.0, 1.0, 9.0], 2) == 19 + 195
    assert training_speed._whole([1.0] * 300, 2) == 200
    with pytest.raises(ValueError, match="--epochs must be more, not 1"):
        RACE.methods(1)


def test_what_is_done_to_the_images_is_said_and_weights_go_back_where_asked() -> None:
    assert RACE.images == "as they are"
    assert replace(RACE, recipe=Recipe(crop=2)).images == "shifted by up to 2"
    assert replace(RACE, recipe=Recipe(crop=4, flip=True)).images == "shifted by up to 4, flipped"
    for rewind, label in ((False, SHRUNK), (True, "L0 + Shrink, rewound, 40 % of the MACs")):
        made = replace(RACE, rewind=rewind).methods(5)[label]
        assert isinstance(made, Stack)
        gates = made.methods[0]
        assert isinstance(gates, L0)
        assert gates.end.rewind == (0 if rewind else None)


def test_noise_is_for_what_is_kept() -> None:
    (_, made) = replace(RACE, rewind=True, drop=(("fc2", 0.5),)).methods(5).values()
    assert isinstance(made, Stack)
    gates = made.methods[0]
    assert isinstance(gates, L0)
    assert gates.end.drop == (("fc2", 0.5),)
    assert gates.at == Places(("units:Conv2d", "inputs:Linear"))
    assert shrunk(0.4, rewound=True, noisy=True) == "L0 + Shrink, rewound, with noise, 40 % of the MACs"
