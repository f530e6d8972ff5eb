"""The tables of hard-threshold networks: settings, what a row measures, how they are shown, what the command line takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evidence.hard.mismatch import mismatches
from evidence.tables import TABLES
from evidence.tables.hard import EXAMPLES, UNITS, HardExperiment, units_of
from evidence.views.hard_views import hard_chart, hard_view
from evidence.views.views import FIGURES, VIEWS, find
from paring.cli.arguments import parse_rule
from paring.cli.results import Results
from paring.cli.train_options import read_training
from paring.data import load as load_data
from paring.hard import ApproxSign, Hinge, SaturatedSTE, SoftHinge
from paring.methods import Binarize, Dense
from paring.train import Recipe

SMALL, CIFAR = TABLES["friesen2018-small"], TABLES["friesen2018"]


def test_every_rule_on_every_network() -> None:
    entries = SMALL.entries(2)
    for model in ("lenet_300_100", "convnet4_8"):
        for data in ("mnist", "fashion_mnist"):
            found = [e for e in entries if (e.experiment.model, e.experiment.data) == (model, data)]
            told = {(units_of(e.experiment.method), e.label) for e in found}
            wanted = {(units, rule) for units in ("sign", "2-bit", "3-bit") for rule in ("ste", "sste", "ftp-sh")}
            wanted |= {("sign", "approx-sign"), ("2-bit", "lsq"), ("real", "relu"), ("saturated", "saturated-relu")}
            assert wanted <= told
            assert len(told) == len(found) == 20
            assert len({replace(e.experiment.recipe, seed=0) for e in found}) == 1  # one recipe for all rules
    assert {e.experiment.recipe.seed for e in entries} == {2}
    assert len({e.experiment.key for e in entries}) == len(entries)
    assert SMALL.seeds == 3


def test_the_published_settings() -> None:
    for entry in CIFAR.entries(0):
        recipe, model = entry.experiment.recipe, entry.experiment.model
        assert (recipe.epochs, recipe.milestones, recipe.gamma, recipe.batch) == (300, (200, 250), 0.1, 64)
        assert (recipe.optimizer, recipe.lr) == ("adam", {"convnet4": 2.5e-4, "convnet8": 1e-3}[model])
        assert (recipe.weight_decay, recipe.crop, recipe.flip, recipe.device) == (5e-4, 4, True, "cuda")
        method = entry.experiment.method
        assert isinstance(method, Dense) if entry.label == "relu" else isinstance(method, Binarize)
        assert getattr(method, "weights", "none") == "none"  # activations only, as in the paper
    windows = {e.label: e.experiment.method.rule.window for e in CIFAR.entries(0) if "sste" in e.label}  # type: ignore[attr-defined]
    assert windows == {"sste": 1.0, "sste, √3": 3**0.5}


def test_recalled_figures_say_so() -> None:
    assert len(CIFAR.quoted) == 12
    assert all("recalled" in row["method"] for row in CIFAR.quoted)
    found = {(row["model"], row["units"], row["method"].split()[0]): row["error"] for row in CIFAR.quoted}
    assert found["convnet4", "sign", "ftp-sh"] == pytest.approx(18.7)
    assert found["convnet8", "2-bit", "ftp-sh"] == pytest.approx(10.2)
    assert len({row["run"] for row in CIFAR.quoted}) == 12


@pytest.mark.slow
def test_a_row_measures_the_network_that_was_kept(tmp_path: Path) -> None:
    method = Binarize("sign", "none", rule=SoftHinge())
    experiment = HardExperiment("lenet_300_100", "digits", method, Recipe(epochs=2, batch=100, lr=2e-3))
    row = experiment.run(tmp_path, progress=False)
    assert row["units"] == "sign"
    assert [one["layer"] for one in row["hard_layers"]] == ["relu1", "relu2"]
    assert row["cosine"] == pytest.approx(sum(one["cosine"] for one in row["hard_layers"]) / 2, abs=1e-4)
    assert 0.5 < row["right"] <= 1
    assert 0 < row["captured"] <= 1
    assert [one["layer"] for one in row["target_quality"]] == ["relu1", "relu2"]
    assert row["epoch_seconds"] == pytest.approx(row["train_seconds"] / 2, abs=1e-3)
    assert row["epoch_cpu_seconds"] == pytest.approx(row["train_cpu_seconds"] / 2, abs=1e-3)
    assert 0 < row["train_cpu_seconds"] < 2 * row["threads"] * row["train_seconds"] + 1
    assert 0 <= row["train_error"] < 60
    assert experiment.run(tmp_path, progress=False) == row

    data = load_data("digits", validation=0, seed=0)
    fresh = method.swapped(experiment.network(data))
    untrained = mismatches(fresh, data.train.x[:EXAMPLES], data.train.y[:EXAMPLES], units=UNITS)
    assert untrained[0].cosine != pytest.approx(row["hard_layers"][0]["cosine"], abs=1e-3)

    dense = HardExperiment("lenet_300_100", "digits", Dense(), Recipe(epochs=1)).run(tmp_path, progress=False)
    assert (dense["units"], dense["cosine"], dense["hard_layers"]) == ("real", None, [])


def row(method: str, units: str, seed: int, error: float, **more: float | None) -> dict[str, object]:
    told = {"run": f"{method}{units}{seed}", "model": "convnet4_8", "data": "mnist", "method": method, "units": units}
    return {**told, "seed": seed, "source": "measured", "error": error, "train_error": error - 1, **more}


def test_the_view_and_the_figure() -> None:
    rows = [
        row("ftp-sh", "sign", 0, 3.0, cosine=0.5, right=0.75, epoch_seconds=2.0),
        row("ftp-sh", "sign", 1, 4.0, cosine=0.7, right=0.85, epoch_seconds=2.0),
        row("relu", "real", 0, 1.5, cosine=None),
    ]
    results = Results("friesen2018-small", "python -m evidence table friesen2018-small", rows)
    assert find(VIEWS, "friesen2018-small", "rows") is find(VIEWS, "friesen2018", "rows") is hard_view
    lines = hard_view(results).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "network", "data", "units", "rule", "error %", "training error %", "gap", "cosine", "better target", "an epoch",
        "seeds",
    ]  # fmt: skip
    assert lines[2] == (
        "| ConvNet4 (8) | MNIST | sign | ftp-sh | 3.50 ± 0.71 | 2.50 ± 0.71 | 1.00 | 0.60 ± 0.14 | 80.00 ± 7.07 % | 2.0 s | 2 |"
    )
    svg = find(FIGURES, "friesen2018-small", "convnet4_8-mnist")(results)
    assert svg is not None
    assert "sign: soft hinge" in svg
    assert hard_chart(results, "convnet4", "cifar10") is None


def test_the_command_line_takes_rules() -> None:
    assert parse_rule("sste:window=1.5") == SaturatedSTE(1.5)
    assert parse_rule("soft_hinge:weighted=false") == SoftHinge(weighted=False)
    with pytest.raises(ValueError, match="choose one of ste, sste"):
        parse_rule("softhinge")
    words = ["--method", "binarize", "--rule", "approx_sign", "--weights", "sign", "--weight-rule", "hinge"]
    _, experiment, _ = read_training([*words, "--no-keep-first"], prog="paring train", description="")
    expected = Binarize("sign", "sign", rule=ApproxSign(), weight_rule=Hinge(), keep_first=False)
    assert experiment.method == expected
    assert torch.device(experiment.recipe.device).type == "cpu"


def test_checks_are_rows_but_no_bars() -> None:
    from evidence.tables.table import Entry, is_shortened, shortened
    from evidence.views.hard_views import hard_chart, hard_view

    entry = Entry("ftp-sh", HardExperiment("lenet_300_100", "mnist", Binarize("sign", "none"), Recipe(epochs=2)))
    for one in (shortened(entry, 1), shortened(entry, None, 100), shortened(entry, 1, 2000)):
        assert is_shortened(one.label), one.label
    assert not any(map(is_shortened, ("ftp-sh", "ftp-sh, unweighted", "ftp-sh (Friesen and Domingos, recalled)")))
    whole, check = (
        {**row("ftp-sh", "sign", 0, 3.0), "run": name, "method": name} for name in ("sste", shortened(entry, 1).label)
    )
    results = Results("friesen2018-small", "a command", [whole, check])
    assert "1 epochs" in hard_view(results)
    chart = hard_chart(results, whole["model"], whole["data"])
    assert chart is not None
    assert "sign: saturated straight-through" in chart
    assert "1 epochs" not in chart
