"""Tickets of methods that shrink, rescale or never move their weights; what a search costs; trainings that diverge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paring.cli.experiment import Experiment
from paring.cli.main import main
from paring.cli.tickets import Plan, judge, run_plan
from paring.cli.tickets.retrain import Retrain
from paring.core import Method, Stack
from paring.data import load
from paring.methods import GMP, IMP, L0, AtInit, ContinuousSparsification, EdgePopup, Hold, Shrink, Slimming, Supermask
from paring.train import Diverged, Recipe

DATA = load("digits")
RECIPE = Recipe(epochs=2, batch=200, lr=2e-3)
SHRINK = Shrink(every="1ep", multiple_of=1, saving=0.001, measure=False)


def search(method: Method, **recipe: Any) -> Experiment:
    return Experiment("lenet_300_100", "digits", method, replace(RECIPE, **recipe))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: what one test has trained, another one reads."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    "method",
    [
        IMP(prunings=3, rate=0.7, rewind=2),
        ContinuousSparsification(density=0.03, searches=2, rewind=2),
        Slimming(density=0.2),
    ],
    ids=lambda one: type(one).__name__,
)
def test_methods_of_several_rounds_shrink(runs: Path, method: Method) -> None:
    one = search(Stack(method, SHRINK))
    row = one.run(runs, progress=False, data=DATA)
    assert len(row["rounds"]) == method.rounds
    assert row["rounds"][-1]["error"] == pytest.approx(row["error"])
    densities = [record["weight_density"] for record in row["rounds"]]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > 2 * densities[-1] or isinstance(method, ContinuousSparsification)
    lines = (runs / one.name / "metrics.jsonl").read_text().splitlines()
    assert any("shrinks" in json.loads(line) for line in lines)


@pytest.mark.parametrize(
    "method",
    [
        IMP(prunings=3, rate=0.7, rewind=2),
        GMP(density=0.03, every=2, recover=False),
        ContinuousSparsification(density=0.03, searches=1, rewind=2),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_ticket_of_a_search_that_shrank(runs: Path, method: Method) -> None:
    """Its mask is of the whole network's size, and what is left of the rewind point lies in its old place."""
    one = search(Stack(method, SHRINK))
    row = one.run(runs, progress=False, data=DATA)
    last = method.tickets[-1]
    net, start, _ = Retrain(one, last).network(runs, DATA)
    assert start == (2 if method.rounds > 1 else 0)
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Linear)]
    assert [tuple(weight.shape) for weight in weights] == [(300, 64), (100, 300), (10, 100)]
    kept = sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert kept == pytest.approx(row["weight_density"])
    if start == 0:
        begun = one.network(DATA)
        for mine, first in zip(weights, (m.weight for m in begun.modules() if isinstance(m, nn.Linear)), strict=True):
            assert torch.equal(mine, torch.where(mine != 0, first, 0.0))
    else:
        search(method).run(runs, progress=False, data=DATA)
        for round in method.tickets:
            mine, theirs = (Retrain(each, round).network(runs, DATA)[0] for each in (one, search(method)))
            for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
                both = (own != 0) & (other != 0)
                assert bool(both.any()) or round > 1
                assert torch.equal(own[both], other[both])
    assert Retrain(one, last).run(runs, progress=False, data=DATA)["weight_density"] == pytest.approx(kept)


@pytest.mark.parametrize("s0", [0.0, -0.3])
def test_the_factor_of_rescaled_masks_goes_along(tmp_path: Path, s0: float) -> None:
    one = search(ContinuousSparsification(s0=s0, density=0.1, searches=2, rewind=5, rescale=True))
    own = one.run(tmp_path, progress=False, data=DATA)["rounds"][2]
    alone = Retrain(one, 2).run(tmp_path, progress=False, data=DATA)
    for key in ("error", "weight_density", "parameters", "nonzeros", "layers"):
        assert alone[key] == own[key]


@pytest.mark.parametrize("method", [EdgePopup(keep=0.3, constant=True), Supermask(constant=True, draw=0)])
def test_weights_that_the_search_never_had_are_not_trained(tmp_path: Path, method: Method) -> None:
    one = search(method)
    one.run(tmp_path, progress=False, data=DATA)
    for control in ("ticket", "reinit"):
        net, _, _ = Retrain(one, 0, control).network(tmp_path, DATA)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                size = module.weight[module.weight != 0].abs()
                assert bool(torch.isclose(size, size[0]).all())


@pytest.mark.parametrize("ticket", ["none", "prune"])
def test_all_searches_are_paid_for(tmp_path: Path, ticket: Any) -> None:
    method = ContinuousSparsification(density=0.2, searches=3, ticket=ticket)
    plan = Plan("lenet_300_100", "digits", (method,), RECIPE, seeds=1)
    _, verdict = run_plan(plan, tmp_path, progress=False)
    assert (verdict.epochs, verdict.sequential) == (8, 8)  # three searches of two epochs, and the training in isolation


def test_two_masks_at_initialisation_are_no_search() -> None:
    assert Stack(AtInit(at="weights:fc1"), AtInit(at="weights:fc2")).trains_ticket
    assert Stack(AtInit(), SHRINK).trains_ticket
    assert not Stack(AtInit(at="weights:fc1"), GMP(at="weights:fc2")).trains_ticket
    assert not Stack(SHRINK).trains_ticket


def test_three_sizes_in_every_row(tmp_path: Path) -> None:
    plan = Plan("lenet_300_100", "digits", (IMP(prunings=1, rate=0.9),), RECIPE, seeds=1, controls=("reinit",))
    rows, _ = run_plan(plan, tmp_path, progress=False)
    for row in rows:
        assert row["nonzeros"] <= row["parameters"]
        assert row["parameters"] <= 50_610
        assert {"macs", "weight_density", "live_density", "mac_density"} <= set(row)


WILD = ContinuousSparsification(density=0.2, searches=1, rewind=2, s0=-60.0, rescale=True)


def test_a_training_that_diverges_is_told_and_the_others_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tame = replace(WILD, s0=0.0)
    rows, verdict = run_plan(Plan("lenet_300_100", "digits", (WILD, tame), RECIPE, seeds=1), tmp_path)
    assert [row["control"] for row in rows] == ["dense", "ticket", "diverged"]
    assert "seed 0" in rows[-1]["note"]
    assert "diverged: " in capsys.readouterr().err
    assert len(verdict.levels) == 1
    with pytest.raises(Diverged, match="no subnetwork is left to judge"):
        run_plan(Plan("lenet_300_100", "digits", (WILD,), RECIPE, seeds=1), tmp_path, progress=False)
    with pytest.raises(Diverged, match="the dense network, seed 0"):
        run_plan(Plan("lenet_300_100", "digits", (tame,), replace(RECIPE, lr=1e38), 1), tmp_path, progress=False)


def test_a_level_that_lacks_a_seed_matches_nothing() -> None:
    dense = [{"error": 1.0, "seed": 0}, {"error": 1.0, "seed": 1}]
    numbers = {"search_epochs": 1, "search_seconds": 1.0, "epochs": 1, "train_seconds": 1.0}
    row = {"level": "a", "search": 0, "control": "ticket", "weight_density": 0.5, "error": 0.5, "seed": 1, **numbers}
    level = judge(dense, [row], winning=False).levels[0]
    assert (level.missing, level.matching) == (1, False)
    assert judge(dense, [row, row | {"seed": 0}], winning=False).levels[0].matching
    whole = judge(dense, [row | {"seed": seed, "weight_density": 1.0} for seed in (0, 1)], winning=False)
    assert not whole.levels[0].matching  # all weights open: no subnetwork
    worse = {"level": "b", "search": 1, "error": 0.9}
    several = judge(
        dense, [row | {"seed": s} | more for s in (0, 1) for more in ({"weight_density": 1.0}, worse)], winning=False
    )
    assert several.best.error == 0.9


def test_a_rewind_point_beyond_the_end_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "tickets",
        "--method",
        "imp",
        "--rewind",
        "5ep",
        "--epochs",
        "2",
        "--seeds",
        "1",
        "--runs",
        str(tmp_path / "r"),
    ]
    assert main([*words, "--results", str(tmp_path)]) == 1
    assert "give an earlier step, or train longer" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_verdict_is_in_the_file(tmp_path: Path) -> None:
    words = ["tickets", "--method", "imp", "--prunings", "1", "--epochs", "1", "--seeds", "1", "--quiet"]
    assert main([*words, "--runs", str(tmp_path), "--results", str(tmp_path), "--name", "one"]) == 0
    rows = json.loads((tmp_path / "one.json").read_text())["rows"]
    verdict = next(row for row in rows if row["control"] == "verdict")
    assert verdict["bar"] == verdict["dense"][0]
    assert verdict["best"]["density"] == verdict["levels"][0]["density"]
    assert verdict["sparsest"] is None or verdict["sparsest"] == verdict["levels"][0]


def test_rounds_are_measured_where_the_network_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is attached for it comes to that device, the example included."""
    one = search(IMP(prunings=1))
    asked: list[Any] = []
    attached = Experiment.attached

    def noted(self: Experiment, data: Any, device: Any = "cpu") -> Any:
        asked.append(device)
        return attached(self, data, device)

    monkeypatch.setattr(Experiment, "attached", noted)
    one.run(tmp_path, progress=False, data=DATA)
    assert asked == [torch.device("cpu")]
    found: list[Any] = []
    monkeypatch.setattr("paring.cli.experiment.attach", lambda net, method, x, **_: found.append((net, x)))
    attached(one, DATA, "meta")
    net, x = found[0]
    assert {p.device.type for p in net.parameters()} == {x.device.type} == {"meta"}


def test_a_stack_whose_l0_trains_its_own_ticket_is_refused() -> None:
    with pytest.raises(ValueError, match="trains its own ticket"):
        Plan("lenet_300_100", "digits", (Stack(L0(at="weights", hold=Hold(0.5, rewind="1ep")), SHRINK),), RECIPE)
