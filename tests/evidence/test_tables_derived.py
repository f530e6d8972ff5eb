"""Experiments made from others, and reduced ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence.tables.derived import Isolated, Narrowed, Transplanted
from evidence.tables.reduced import check_devices, reduced
from evidence.tables.table import Entry, Table, run_table, shortened
from paring import select
from paring.cli.experiment import RESULT, Experiment
from paring.cli.results import load
from paring.cli.rounds import masks
from paring.core import Stack
from paring.data import load as load_data
from paring.methods import GMP, IMP, L0, ContinuousSparsification, Dense, Slimming
from paring.train import Recipe, fit

RECIPE = Recipe(epochs=1, batch=200, lr=2e-3)
SOURCE = Experiment("lenet_300_100", "digits", GMP(density=0.1, every=2, allocation=select.Global()), RECIPE)
GIVEN = Transplanted("lenet_300_100", "digits", GMP(every=2), RECIPE, source=SOURCE)
SEARCH = Experiment("lenet_300_100", "digits", IMP(prunings=2, rate=0.5), RECIPE)


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError(f"{self.name} was trained")

    monkeypatch.setattr(Experiment, "_row", row)


# --- transplants ----------------------------------------------------------------------------------------------------


def test_a_transplant_ends_with_the_densities_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = GIVEN.run(tmp_path, progress=False)
    source = SOURCE.result(tmp_path)
    assert source is not None, "the source ran first, in its own folder"
    assert (row["run"], row["source_run"]) == (GIVEN.key, SOURCE.key)
    made = GIVEN.given(source)
    assert isinstance(made.method, GMP)
    own = made.result(tmp_path)
    assert own is not None
    assert own["run"] == made.key != GIVEN.key
    allocation = made.method.allocation
    assert allocation == select.Given(tuple((name, one["density"]) for name, one in source["layers"].items()))
    data = load_data("digits")
    fitted = fit(made.network(data), made.method, data, RECIPE, progress=False)
    for name, mask in masks(fitted.net).items():
        assert int(mask.sum()) == round(source["layers"][name]["density"] * mask.numel())
    assert own["weight_density"] == pytest.approx(source["live_density"], abs=1e-4)
    no_training(monkeypatch)
    assert GIVEN.run(tmp_path, progress=False) == row, "everything is only read"


def test_a_transplant_names_its_source() -> None:
    other = replace(GIVEN, source=replace(SOURCE, method=GMP(density=0.2)))
    assert other.key != GIVEN.key
    assert other.given({"live_density": 0.3, "layers": {"fc1": {"density": 0.25}}}) == Experiment(
        "lenet_300_100",
        "digits",
        GMP(density=0.3, every=2, allocation=select.Given((("fc1", 0.25),))),
        RECIPE,
    )


def test_a_transplant_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="only GMP is given densities"):
        replace(GIVEN, method=Dense())
    with pytest.raises(ValueError, match="layers are not those of lenet_300_100"):
        replace(GIVEN, source=replace(SOURCE, model="lenet5_caffe"))


def test_a_damaged_source_is_named(tmp_path: Path) -> None:
    folder = tmp_path / SOURCE.name
    folder.mkdir()
    (folder / RESULT).write_text("{")
    with pytest.raises(ValueError, match=rf"{SOURCE.name}/result.json is damaged"):
        GIVEN.run(tmp_path, progress=False)


# --- widths ---------------------------------------------------------------------------------------------------------


def test_narrowed_ends_with_the_widths_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Slimming(density=0.3, at="units:!fc3")
    source = replace(SOURCE, method=found)
    narrowed = Narrowed("lenet_300_100", "digits", Slimming(rate=0.0, at="units:!fc3"), RECIPE, source=source)
    row = narrowed.run(tmp_path, progress=False)
    before = source.result(tmp_path)
    assert before is not None, "the source ran first, in its own folder"
    assert (row["run"], row["source_run"]) == (narrowed.key, source.key)
    assert row["architecture"] == before["architecture"] != "64-300-100"
    made = narrowed.given(tmp_path, load_data("digits"))
    own = made.result(tmp_path)
    assert own is not None
    assert own["run"] == made.key != narrowed.key
    assert row["epochs"] == own["epochs"] + before["epochs"] == 4
    assert row["train_seconds"] == own["train_seconds"] + before["train_seconds"]
    no_training(monkeypatch)
    assert narrowed.run(tmp_path, progress=False) == row, "everything is only read"
    with pytest.raises(ValueError, match="only Slimming is given widths"):
        replace(narrowed, method=GMP())
    with pytest.raises(ValueError, match="Narrowed: lenet5_caffe's layers are not those of lenet_300_100"):
        replace(narrowed, source=replace(source, model="lenet5_caffe"))


# --- isolated tickets -----------------------------------------------------------------------------------------------


def test_controls_are_rows_of_a_table_that_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = (SEARCH.model, SEARCH.data, SEARCH.method, SEARCH.recipe)
    tickets = {
        control: Isolated(*fields, round=1, control=control)  # type: ignore[arg-type]
        for control in ("ticket", "reinit", "shuffled")
    }
    entries = [Entry("IMP", SEARCH), *(Entry(f"IMP, {name}: 50 %", one) for name, one in tickets.items())]
    table = Table("controls-check", "a check", lambda seed: entries)

    def make() -> list[dict[str, Any]]:
        folders: dict[str, Any] = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
        return run_table(
            table, seeds=1, command="python -m evidence table controls-check", progress=False, **folders
        ).rows

    rows = make()
    assert load(tmp_path / "results" / "controls-check.json").rows == rows
    search, ticket, reinit, shuffled = rows
    assert [row["run"] for row in rows] == [entry.experiment.key for entry in entries]
    assert ticket["error"] == search["rounds"][1]["error"], "the ticket's training is the round that followed"
    assert {row["weight_density"] for row in (ticket, reinit, shuffled)} == {search["rounds"][1]["weight_density"]}
    assert len({row["error"] for row in (ticket, reinit, shuffled)}) > 1
    no_training(monkeypatch)
    assert make() == rows


# --- reduced runs ---------------------------------------------------------------------------------------------------

GPU = Recipe(
    epochs=160,
    optimizer="sgd",
    lr=0.1,
    schedule="step",
    milestones=(80, 120),
    warmup=5.0,
    device="cuda",
    bf16=True,
    compile=True,
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)


@pytest.mark.parametrize("cuda", [True], indirect=True)
@pytest.mark.usefixtures("cuda")
def test_milestones_and_rewind_points_follow() -> None:
    full = Experiment("resnet20", "cifar10", IMP(rewind="2ep"), GPU)
    short = reduced(full, 16)
    assert short.recipe == replace(GPU, epochs=16, milestones=(8, 12), warmup=0.0)
    assert short.method == IMP(rewind="0.2ep")
    assert reduced(replace(full, method=IMP(rewind=700)), 16).method == IMP(rewind=70)
    assert reduced(replace(full, method=IMP(rewind=0)), 16).method == IMP(rewind=0)
    stack = Stack(ContinuousSparsification(rewind="2ep"), L0())
    assert reduced(replace(full, method=stack), 80).method == Stack(ContinuousSparsification(rewind="1ep"), L0())
    assert reduced(full, 160) == replace(full, recipe=replace(GPU, warmup=0.0))
    assert reduced(replace(GIVEN, source=replace(SOURCE, recipe=GPU)), 16) == replace(
        GIVEN,
        recipe=replace(RECIPE, epochs=16),
        source=replace(SOURCE, recipe=short.recipe, method=replace(SOURCE.method, every=1)),
    )
    tuned = replace(full, finetune=GPU)
    assert reduced(tuned, 16).finetune == replace(GPU, epochs=8, milestones=(4, 6), warmup=0.0)


@pytest.mark.parametrize("cuda", [False], indirect=True)
@pytest.mark.usefixtures("cuda")
def test_without_a_gpu_reduced_runs_move_to_the_cpu_and_whole_ones_are_refused(tmp_path: Path) -> None:
    full = Experiment("resnet20", "cifar10", GMP(density=0.1), GPU)
    moved = shortened(Entry("GMP: 10 %", full), 1)
    assert moved.label == "GMP (1 epochs on cpu): 10 %"
    assert moved.experiment.recipe == replace(
        GPU, epochs=1, milestones=(1, 1), warmup=0.0, device="cpu", bf16=False, compile=False
    )
    check_devices("check", [moved.experiment])
    table = Table("gpu-check", "a check", lambda seed: [Entry("dense", SOURCE), Entry("GMP: 10 %", full)])
    with pytest.raises(
        RuntimeError, match=r"1 runs of table 'gpu-check' \(the first: resnet20 gmp\) train on a CUDA device"
    ):
        run_table(table, seeds=1, runs=tmp_path / "runs", results=tmp_path / "results", command="x", progress=False)
    assert not (tmp_path / "runs").exists(), "nothing was started"
    check_devices("check", [SOURCE])
    asked = run_table(
        table,
        seeds=1,
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        command="x",
        progress=False,
        epochs=1,
        only="lenet_300_100 dense",
    )
    assert [row["method"] for row in asked.rows] == ["dense (1 epochs)"], "chosen by the table's own labels"
