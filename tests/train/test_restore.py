"""Resuming: a checkpoint that is damaged, or says what cannot be, is named, left alone, and the one before it is taken."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from marks import CUT_SHORT
from paring.core.state_file import read
from paring.data import load
from paring.methods import Dense
from paring.testing import same_state
from paring.train import CHECKPOINT, METRICS, CheckpointError, Fit, Recipe, Trainer, checkpoint, fit

pytestmark = CUT_SHORT

DATA = load("digits", validation=100).few(120, 0)
RECIPE = Recipe(epochs=3, batch=40, ema=0.9, seed=3, optimizer="sgd", lr=0.05)
METHOD = pr.Stack(
    pr.L0(price=pr.Budget(params=0.5), at="units", hold=0.3),
    pr.Shrink(every=1, multiple_of=1, saving=0.0, measure=False),
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 10))


def trained(folder: Path | None, method: pr.Method = METHOD, recipe: Recipe = RECIPE) -> Fit:
    return fit(network(), method, DATA, recipe, folder=folder, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fit]:
    folder = tmp_path_factory.mktemp("run")
    return folder, trained(folder)


@pytest.fixture
def folder(finished: tuple[Path, Fit], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    made = Trainer(network(), METHOD, DATA, RECIPE, None)
    with torch.random.fork_rng():
        made.begin()
    return made


def test_the_run_of_these_tests_shrinks(finished: tuple[Path, Fit]) -> None:
    state = read(finished[0] / CHECKPOINT)["run"]
    assert any(record["done"] for record in state["shrinks"])
    assert state["state"]["kept"]


def test_random_flips_never_end_in_other_weights(folder: Path, trainer: Trainer) -> None:
    path = folder / CHECKPOINT
    whole, before = path.read_bytes(), read(checkpoint.previous(path))
    rng = random.Random(0)
    places = [rng.randrange(8 * 700) for _ in range(60)] + [rng.randrange(8 * len(whole)) for _ in range(140)]
    for bit in places:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.warns(
            pr.ParingWarning, match=r"checkpoint.pt cannot be read: .*checkpoint.pt.previous, .* is taken"
        ):
            found = checkpoint.load(path, trainer._check_state)
        assert found is not None
        assert found[1] == checkpoint.previous(path)
        assert same_state(found[0]["net"], before["net"])


def test_a_flip_costs_one_epoch_and_is_said(folder: Path, finished: tuple[Path, Fit]) -> None:
    path = folder / CHECKPOINT
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    with pytest.warns(pr.ParingWarning, match="it is damaged: its bytes do not match their digest"):
        again = trained(folder)
    assert same_state(again.net.state_dict(), finished[1].net.state_dict())
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in finished[1].rows]


def test_a_newest_that_does_not_fit_costs_one_epoch_and_is_said(folder: Path, finished: tuple[Path, Fit]) -> None:
    path = folder / CHECKPOINT
    earlier, state = checkpoint.previous(path).read_bytes(), read(path)
    state["run"]["clock"] = "x"
    checkpoint.save(path, state)
    checkpoint.previous(path).write_bytes(earlier)
    with pytest.warns(pr.ParingWarning, match="'clock' is no field of a run's state; it has step, round"):
        again = trained(folder)
    assert same_state(again.net.state_dict(), finished[1].net.state_dict())


def test_nothing_usable_is_a_clear_error_that_leaves_the_files(folder: Path) -> None:
    for path in (folder / CHECKPOINT, folder / (CHECKPOINT + ".previous")):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="To begin anew, name another folder; these files stay as they are"):
        trained(folder)
    assert (folder / CHECKPOINT).read_bytes() == b"nothing"


def test_stale_files_of_killed_writers_go(folder: Path) -> None:
    for name in (CHECKPOINT, METRICS):
        (folder / f".{name}.0a1b2c3d.partial").write_bytes(b"half")
    before = (folder / CHECKPOINT).stat().st_mtime_ns
    trained(folder, recipe=RECIPE)
    assert (folder / CHECKPOINT).stat().st_mtime_ns == before
    checkpoint.save(folder / CHECKPOINT, read(folder / CHECKPOINT))
    assert not list(folder.glob(".*"))


def test_what_cannot_be_kept_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    checkpoint.save(path, {"a": 1})
    with pytest.raises(CheckpointError, match="'b' is a set"):
        checkpoint.save(path, {"b": {1}})
    assert checkpoint.load(path) == ({"a": 1}, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT]


# --- fields ---------------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def put(state: Any, at: tuple[Any, ...], value: Any) -> Any:
    state = copy.copy(state)
    node = state
    for key in at[:-1]:
        node[key] = copy.copy(node[key])
        node = node[key]
    node[at[-1]] = value
    return state


FREE = {("seconds",), ("cpu_seconds",), ("run", "step"), ("ema", "updates")}  # other numbers are as possible there
OTHER: tuple[Any, ...] = (
    "x", "os:system", None, -1, 10**30, float("nan"), True, [], {}, {"a": 1}, [0], (), torch.zeros(()), torch.zeros(3),
    torch.full((8, 64), float("nan")), torch.arange(3), torch.zeros(2, 3, 4), torch.tensor([2, 1]), print,
)  # fmt: skip


@pytest.mark.parametrize("newest", [True, False], ids=["shrunk", "whole"])
def test_every_wrong_field_is_refused_by_a_message(finished: tuple[Path, Fit], trainer: Trainer, newest: bool) -> None:
    cases = 150
    state = read(finished[0] / CHECKPOINT) if newest else _first_state()
    trainer._check_state(state)
    before = copy.deepcopy(trainer.net.state_dict())
    given = [(at, value) for at in places(state) for value in OTHER]
    refused = 0
    for at, value in random.Random(0).sample(given, cases):
        refused += (why := _refusal(trainer, put(state, at, value))) is not None
        assert len(why or "") < 900
        assert why or _may(at, value, state), f"{at} = {value!r} was accepted"
    assert refused > 0.9 * cases
    assert same_state(before, trainer.net.state_dict())


def _first_state() -> dict[str, Any]:
    """A state after one epoch in which nothing was cut."""
    kept: list[dict[str, Any]] = []
    one = Trainer(network(), METHOD, DATA, RECIPE, None)
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda path, state: kept.append(copy.deepcopy(state)))
        one.begin()
        one.folder = Path("nowhere")
        one.train_epoch()
    return kept[0]


def _refusal(trainer: Trainer, state: dict[str, Any]) -> str | None:
    try:
        trainer._check_state(state)
    except ValueError as error:
        return str(error)
    return None


def _may(at: tuple[Any, ...], value: Any, state: Any) -> bool:
    """Whether this value is as possible in this place as the one that is there."""
    now = state
    for key in at:
        now = now[key]
    if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor):
        return value.shape == now.shape and value.dtype == now.dtype
    if at[:2] == ("run", "shrinks"):
        return len(at) > 3 or value == [] or isinstance(value, dict)
    if value == {} and (
        at == ("opt", "state") or (at[:2] == ("run", "state") and len(at) == 3)
    ):  # a method and an optimizer may remember nothing yet
        return True
    return at in FREE or at[-1] == "lr" or value == [] == now or (at[-1] == "momentum_buffer" and value is None)


def test_missing_and_further_fields_are_named(finished: tuple[Path, Fit], trainer: Trainer) -> None:
    state = read(finished[0] / CHECKPOINT)
    for at in [
        (),
        ("run",),
        ("run", "state"),
        ("ema",),
        ("opt",),
        ("opt", "param_groups", 0),
        ("net",),
        ("ema", "sums"),
    ]:
        node = state
        for key in at:
            node = node[key]
        for name in node:
            broken = put(state, (*at, name), None)
            inner = broken
            for key in at:
                inner = inner[key]
            del inner[name]
            with pytest.raises(ValueError, match=f"'{name}' is missing"):
                trainer._check_state(broken)
        with pytest.raises(ValueError, match="'further'"):
            trainer._check_state(put(state, (*at, "further"), 1))


@pytest.mark.parametrize("value", ["x", 3, None, (1, 2)])
def test_a_clock_is_a_clock(trainer: Trainer, value: Any) -> None:
    with pytest.raises(TypeError, match=r"run.clock is a paring.core.Clock, not"):
        trainer.run.clock = value


@pytest.mark.parametrize("change", [{"step": "x"}, {"step": 1.5}, {"round": True}, {"steps": "10"}])
def test_a_clock_counts_in_whole_numbers(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number, at least"):
        pr.core.Clock(**change)


def test_adam_resumes_and_refuses_likewise(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer="adam", ema=0.0, epochs=2)
    first = trained(tmp_path, Dense(), recipe)
    again = trained(tmp_path, Dense(), recipe)
    assert same_state(first.net.state_dict(), again.net.state_dict())
    path = tmp_path / CHECKPOINT
    for change, why in [
        (("opt", "state", 0, "exp_avg"), "'exp_avg' of '1.weight' is no floating-point tensor of shape"),
        (("opt", "param_groups", 0, "betas"), "'betas' of the optimizer is"),
        (("ema",), "'ema' is there"),
        (("rng",), "'rng' is no state of a random generator"),
        (("recipe",), "it belongs to another run"),
    ]:
        state = read(path)
        for candidate in (path, checkpoint.previous(path)):
            checkpoint.save(candidate, put(state, change, torch.zeros(2)))
        with pytest.raises(CheckpointError, match=why):
            trained(tmp_path, Dense(), recipe)
        for candidate in (path, checkpoint.previous(path)):
            checkpoint.save(candidate, state)
