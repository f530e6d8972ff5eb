"""The lottery-ticket protocol: isolated trainings, controls, the verdict and its costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paring.cli.experiment import SMALL, Experiment
from paring.cli.main import main
from paring.cli.tickets import Plan, Retrain, judge, run_plan
from paring.cli.tickets.verdict import matches
from paring.core import Method
from paring.data import load
from paring.files import load as load_net
from paring.methods import IMP, L0, STR, AtInit, ContinuousSparsification, Dense, Hold, Slimming, Supermask
from paring.train import METRICS, Recipe

RECIPE = Recipe(epochs=1, batch=400, lr=0.1, optimizer="sgd")
DATA = load("digits")
SEARCH = Experiment("lenet_300_100", "digits", IMP(prunings=2, rate=0.6, rewind=2), RECIPE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    SEARCH.run(folder, progress=False, data=DATA)
    return folder


def test_every_round_is_measured(root: Path) -> None:
    row = SEARCH.result(root)
    assert row is not None
    assert [one["round"] for one in row["rounds"]] == [0, 1, 2]
    assert [one["epochs"] for one in row["rounds"]] == [1, 1.5, 2]  # each of the later ones begins at step 2 of 4
    densities = [one["weight_density"] for one in row["rounds"]]
    assert densities[0] == 1
    assert densities == sorted(densities, reverse=True)
    last = row["rounds"][-1]
    assert last["error"] == pytest.approx(row["error"])
    total = sum(d["density"] * n for d, n in zip(last["layers"].values(), (64 * 300, 30_000, 1000), strict=True))
    assert last["live_density"] == pytest.approx(total / 50_200)
    assert densities == pytest.approx([1, 0.4, 0.16], abs=1e-4)
    assert last["live_density"] <= last["weight_density"] == row["weight_density"]


@pytest.mark.parametrize("round", [1, 2])
def test_the_ticket_in_isolation_is_the_round(root: Path, round: int) -> None:
    found = SEARCH.result(root)
    assert found is not None
    row = Retrain(SEARCH, round).run(root, progress=False, data=DATA)
    assert row["rewind_step"] == 2
    assert row["error"] == found["rounds"][round]["error"]
    assert row["weight_density"] == found["rounds"][round]["weight_density"]
    assert row["layers"] == found["rounds"][round]["layers"]
    again = Retrain(SEARCH, round)
    before = (root / again.name / METRICS).stat().st_mtime_ns
    assert again.run(root, progress=False, data=DATA) == row
    assert (root / again.name / METRICS).stat().st_mtime_ns == before


def test_controls(root: Path) -> None:
    ticket, start, _ = Retrain(SEARCH, 2).network(root, DATA)
    shuffled, _, _ = Retrain(SEARCH, 2, "shuffled").network(root, DATA)
    fresh, from_zero, _ = Retrain(SEARCH, 2, "reinit").network(root, DATA)
    assert (start, from_zero) == (2, 0)
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        mine, other, new = (net.get_parameter(name) for net in (ticket, shuffled, fresh))
        mask = mine != 0
        assert int(mask.sum()) == int((other != 0).sum())
        assert not torch.equal(mask, other != 0)
        assert torch.equal(mask, new != 0)
        assert not bool((mine[mask] == new[mask]).any())
    row = Retrain(SEARCH, 2, "reinit").run(root, progress=False, data=DATA)
    assert (row["control"], row["rewind_step"]) == ("reinit", 0)


def test_a_search_whose_networks_are_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run it again in another folder"):
        Retrain(SEARCH, 1).run(tmp_path, progress=False, data=DATA)


def test_a_plan_from_beginning_to_end(root: Path) -> None:
    plan = Plan("lenet_300_100", "digits", (SEARCH.method,), RECIPE, seeds=1, controls=("shuffled",))
    rows, verdict = run_plan(plan, root, progress=False)
    assert [row["control"] for row in rows] == ["dense", "ticket", "shuffled", "ticket", "shuffled"]
    assert len(verdict.levels) == 2
    assert [level.epochs for level in verdict.levels] == [1.5, 2]  # an epoch for the first round, half a one for each
    assert verdict.epochs == verdict.sequential == 2  # the training of each ticket is the next round of the search
    assert not verdict.winning
    tickets = [row for row in rows if row["control"] == "ticket"]
    assert [row["own"] for row in tickets] == [True, True]
    for row in tickets:
        alone = Retrain(SEARCH, row["round"]).run(root, progress=False, data=DATA)
        assert {key: row[key] for key in alone if key != "train_seconds"} == {
            key: alone[key] for key in alone if key != "train_seconds"
        }
    assert set(verdict.levels[0].controls) == {"shuffled"}
    assert run_plan(plan, root, progress=False)[0] == rows
    one_shot = replace(plan, methods=tuple(AtInit(score="magnitude", density=d) for d in (0.5, 0.2)), controls=())
    rows, verdict = run_plan(one_shot, root, progress=False)
    assert verdict.winning
    assert [level.density for level in verdict.levels] == pytest.approx([0.5, 0.2], abs=1e-4)
    assert (verdict.sequential, verdict.epochs) == (1, 2)


def ticket(level: str, density: float, error: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    numbers = {"search_epochs": 10, "search_seconds": 100.0, "epochs": 4, "train_seconds": 40.0}
    return {
        "level": level,
        "search": level,
        "control": "ticket",
        "weight_density": density,
        "error": error,
        "seed": seed,
        **numbers,
        **more,
    }


def test_matching_is_within_the_spread_of_the_dense_networks() -> None:
    dense = [{"error": value} for value in (1.0, 2.0, 3.0)]  # 2 +- 1
    rows = [
        *(ticket("a", 0.5, error, seed) for seed, error in enumerate((1.0, 1.5, 2.0))),
        *(ticket("b", 0.2, error, seed) for seed, error in enumerate((2.0, 3.0, 3.9))),
        *(ticket("c", 0.1, error, seed) for seed, error in enumerate((2.0, 3.0, 4.1))),
        ticket("b", 0.2, 9.0, control="reinit"),
    ]
    verdict = judge(dense, rows, winning=True)
    assert verdict.bar == pytest.approx(3.0)
    assert [level.matching for level in verdict.levels] == [True, True, False]
    assert verdict.sparsest is verdict.levels[1]
    assert verdict.best is verdict.levels[0]
    assert verdict.at(0.3) is verdict.levels[1]
    assert verdict.at(0.05) is None
    assert verdict.levels[1].controls == {"reinit": (9.0,)}
    assert (verdict.sequential, verdict.epochs, verdict.seconds) == (14, 42, 420)
    one_search = judge(dense, [row | {"search": 0} for row in rows], winning=True)
    assert (one_search.sequential, one_search.epochs, one_search.seconds) == (14, 22, 220)
    two = judge(dense, [row | {"search": int(row["level"] == "c")} for row in rows], winning=True)
    assert (two.epochs, two.seconds) == (2 * 10 + 3 * 4, 320)
    own = judge(dense, [row | {"search": 0, "own": row["level"] == "c"} for row in rows], winning=True)
    assert (own.sequential, own.epochs, own.seconds) == (14, 22, 220)  # c: 10 + 4; a and b: 4 each


def test_the_bar_is_a_bar() -> None:
    assert matches(0.5, [3.0], 3.0)
    assert matches(0.5, [3.0 + 5e-10], 3.0), "the rounding of a mean"
    assert not matches(0.5, [3.0 + 2e-9], 3.0)
    assert not matches(1.0, [0.0], 3.0), "a network with all weights open is no subnetwork"
    assert not matches(0.5, [0.0], 3.0, {1})


def test_nothing_matches() -> None:
    verdict = judge([{"error": 1.0}], [ticket("a", 0.5, 1.1)], winning=False)
    assert verdict.sparsest is None
    assert verdict.best.error == 1.1
    with pytest.raises(ValueError, match="at least one dense network and one ticket"):
        judge([], [ticket("a", 0.5, 1.1)], winning=False)


def test_errors_that_are_no_numbers() -> None:
    rows = [ticket("a", 0.2, float("nan")), ticket("b", 0.5, 2.0)]
    verdict = judge([{"error": 1.0}], rows, winning=False)
    assert verdict.best.error == 2.0
    assert verdict.sparsest is None
    with pytest.raises(ValueError, match="no number"):
        judge([{"error": 1.0}, {"error": float("nan")}], rows, winning=False)


@pytest.mark.parametrize("seeds", [2, 5, 7])
def test_a_tie_matches_whatever_the_number_of_seeds(seeds: int) -> None:
    rows = [ticket("a", 0.5, 0.7, seed) for seed in range(seeds)]
    assert judge([{"error": 0.7}] * 3, rows, winning=False).levels[0].matching


CHEAP = Recipe(epochs=1, batch=100, lr=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        ContinuousSparsification(density=0.1, searches=1, ticket="none", steer=False, final_beta=1.0),
        Supermask(draw=0),
        STR(s_init=-3.0),
    ],
)
def test_the_ticket_is_the_network_that_the_search_ends_with(tmp_path: Path, method: Method) -> None:
    search = Experiment("lenet_300_100", "digits", method, replace(CHEAP, ema=0.9))
    row = search.run(tmp_path, progress=False, data=DATA)
    net, _, _ = Retrain(search, 0).network(tmp_path, DATA)
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Linear)]
    opened = sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert opened == pytest.approx(row["weight_density"])
    small = load_net(lambda: search.network(DATA), tmp_path / search.name / SMALL)
    left = sum(int((p != 0).sum()) for p in small.parameters() if p.dim() == 2)
    assert left <= opened * sum(weight.numel() for weight in weights) + 0.5
    assert row["live_density"] * sum(weight.numel() for weight in weights) == pytest.approx(left)


def test_winning_asks_the_real_rewind_point(tmp_path: Path) -> None:
    def verdict_of(to: str | int) -> bool:
        plan = Plan("lenet_300_100", "digits", (IMP(prunings=1, rewind=to),), CHEAP, seeds=1)
        return run_plan(plan, tmp_path, progress=False)[1].winning

    assert not verdict_of("0.4ep")
    assert verdict_of(0)


def test_what_finds_no_ticket_is_refused_before_training() -> None:
    for method in (L0(price=1e-3), Slimming(), Dense()):
        with pytest.raises(ValueError, match="no gates on weights"):
            Plan("lenet_300_100", "digits", (method,), CHEAP)
    with pytest.raises(ValueError, match="trains its own ticket"):
        Plan("lenet_300_100", "digits", (L0(at="weights", hold=Hold(0.5, rewind=5)),), CHEAP)
    with pytest.raises(ValueError, match="two searches are the same"):
        Plan("lenet_300_100", "digits", (IMP(), IMP()), CHEAP)
    assert Plan("lenet_300_100", "digits", (IMP(),), CHEAP, controls=("reinit", "reinit")).controls == ("reinit",)


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a method"):
        Plan("lenet_300_100", "digits", (), RECIPE)
    with pytest.raises(ValueError, match="not 'random'"):
        Plan("lenet_300_100", "digits", (Dense(),), RECIPE, controls=("random",))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "tickets",
        "--method",
        "at_init",
        "--score",
        "magnitude",
        "--vary",
        "density=0.5,0.1",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--quiet",
        "--name",
        "t",
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "open weights" in shown
    assert "best subnetwork" in shown
    found = json.loads((tmp_path / "runs/tickets/t.json").read_text())
    kinds = [row["control"] for row in found["rows"]]
    assert kinds == [*["dense"] * 2, *["ticket"] * 4, "verdict"]
    assert found["rows"][-1]["winning"] is True
    page = (tmp_path / "runs/tickets/t.html").read_text()
    assert "Error against density" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.jsonl")}
    assert main(words) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.jsonl")}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--method", "dense"], "finds no subnetwork"),
        (["--method", "at_init", "--vary", "lr=0.1,0.2"], "only options of the method"),
        (["--method", "imp", "--seeds", "0"], "at least one seed"),
        (["--method", "imp", "--name", "a/b"], "a file name without folders"),
        (["--method", "nothing"], "no such method"),
        (["--vary", "validation=0,500"], "only options of the method"),
        (["--method", "gmp", "--vary", "density=0.5,0.50"], "two searches are the same"),
    ],
)
def test_the_command_refuses(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tickets", *words]) != 0
    assert text in capsys.readouterr().err
