"""The table and the curves of error against density."""

from __future__ import annotations

from typing import Any

import pytest

from evidence.tables import TABLES
from evidence.views.density_views import (
    choice_view,
    density_chart,
    density_view,
    equal_cost_view,
    equal_view,
    layers_view,
    points,
)
from evidence.views.views import FIGURES, VIEWS, find
from paring.cli.results import Results


def row(method: str, seed: int, density: float, error: float, **more: Any) -> dict[str, Any]:
    numbers = {"weight_density": density, "error": error, "epochs": 8, "train_seconds": 60.0, "rounds": []}
    own = {"run": f"{method}/{seed}", "model": "lenet_300_100", "data": "mnist", "source": "measured"}
    return {**own, "method": method, "seed": seed, **numbers, **more}


def rounds(*errors: float) -> list[dict[str, Any]]:
    return [
        {
            "round": n,
            "ticket": n > 0,
            "weight_density": 0.5**n,
            "error": error,
            "epochs": 8 * (n + 1),
            "train_seconds": 60.0 * (n + 1),
        }
        for n, error in enumerate(errors)
    ]


ROWS = [
    row("dense", 0, 1.0, 2.0),
    row("dense", 1, 1.0, 2.2),
    row("GMP: 50 %", 0, 0.5, 2.1),
    row("GMP: 50 %", 1, 0.5, 2.3),
    row("GMP: 10 %", 0, 0.1, 2.9),
    row("GMP: 10 %", 1, 0.1, 3.1),
    row("IMP", 0, 0.25, 2.4, rounds=rounds(2.0, 2.1, 2.4)),
    row("IMP", 1, 0.25, 2.6, rounds=rounds(2.2, 2.1, 2.6)),
]


def test_a_method_of_several_rounds_gives_a_subnetwork_per_round() -> None:
    found = points([one for one in ROWS if one["method"] == "IMP"])
    assert [(one.density, one.errors, one.epochs, one.seconds) for one in found] == [
        (0.5, (2.1, 2.1), 16, 120.0),
        (0.25, (2.4, 2.6), 24, 180.0),
    ]


def test_the_table() -> None:
    longer = row("dense, 16 epochs", 0, 1.0, 1.0, epochs=16)
    shown = density_view(
        Results("savarese2020-small", "python -m evidence table savarese2020-small", [*ROWS, longer])
    ).splitlines()
    cells = {line.split("|")[3].strip(): [cell.strip() for cell in line.split("|")[4:-1]] for line in shown[2:]}
    dash = "–"
    assert cells["dense"] == ["2.10 ± 0.14", *[dash] * 7, "(up to 2.24)", dash, "8", "1 min 00 s"]
    assert cells["dense, 16 epochs"] == ["1.00", *[dash] * 9, "16", "1 min 00 s"]  # and nothing is judged by it
    assert cells["GMP"] == [
        *(dash, "2.20 ± 0.14", dash, "3.00 ± 0.14", dash, dash, dash, dash),
        *("50 % at 2.20", "10 % at 3.00", "8", "1 min 00 s"),
    ]
    assert cells["IMP"][1] == "2.10 ± 0.00"
    assert cells["IMP"][2] == "2.50 ± 0.14"  # 25 % stands in the column of 20 %
    assert cells["IMP"][8:10] == ["50 % at 2.10", "25 % at 2.50"]


def test_the_chart_and_the_names_of_the_views() -> None:
    results = Results("savarese2020-small", "python -m evidence table savarese2020-small", ROWS)
    svg = density_chart(results, "lenet_300_100", "mnist")
    assert svg is not None
    assert "gradual pruning" in svg
    assert density_chart(results, "conv4_16", "mnist") is None
    assert find(VIEWS, "savarese2020-small", "rows") is density_view
    assert find(FIGURES, "savarese2020-small", "lenet_300_100-mnist-all")(results) == svg
    more = Results("savarese2020-small", "x", [*ROWS, row("CS: 10 %", 0, 0.1, 3.0)])
    few = find(FIGURES, "savarese2020-small", "lenet_300_100-mnist")(more)
    assert few is not None
    assert "iterative pruning" in few
    assert "Continuous Sparsification" in few
    assert "gradual pruning" not in few, "not one of the main lines"
    cost = find(FIGURES, "savarese2020-small", "lenet_300_100-mnist-cost")(
        Results(
            "savarese2020-small", "x", [row(f"{name}: 2 %", 0, 0.02, 3.0) for name in ("CS", "L0, 16 epochs", "L0")]
        )
    )
    assert cost is not None
    assert "L0, 16 epochs" in cost
    assert ">L0<" not in cost


def test_quoted_rows_stand_beside_ours_and_are_not_judged_by_our_networks() -> None:
    told = {"model": "lenet_300_100", "data": "mnist", "source": "quoted"}
    quoted = [
        {"run": "a", **told, "method": "IMP (paper): 50 %", "error": 1.0, "weight_density": 0.5},
        {"run": "b", **told, "method": "dense (paper)", "error": 2.0, "weight_density": 1.0},
    ]
    shown = density_view(
        Results("frankle2020", "python -m evidence table frankle2020", [*ROWS, *quoted]), (0.5,)
    ).splitlines()
    cells = {line.split("|")[3].strip(): [cell.strip() for cell in line.split("|")[4:-1]] for line in shown[2:]}
    assert cells["IMP (paper)"] == ["–", "1.00", "–", "50 % at 1.00", "quoted", "–"]
    assert cells["dense (paper)"] == ["2.00", "–", "–", "100 % at 2.00", "quoted", "–"]
    assert cells["GMP"][1:3] == ["2.20 ± 0.14", "50 % at 2.20"], "our dense networks stay the bar"
    assert density_chart(Results("frankle2020", "x", quoted), "lenet_300_100", "mnist") is not None


def test_the_layers_that_an_allocation_chose() -> None:
    rows = [
        row(
            "L0",
            seed,
            0.5,
            error,
            **{"macs": 40 + seed, "dense_macs": 100, "parameters": 30, "dense_parameters": 60, "architecture": "8-16"},
            layers={"conv1": {"density": 0.25}, "fc": {"density": 0.75}},
        )
        for seed, error in ((0, 2.0), (1, 4.0))
    ]
    lines = layers_view(Results("he2018", "python -m evidence table he2018", rows)).splitlines()
    assert len(lines) == 3
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("LeNet-300-100", "mnist", "L0", "8-16", "conv1 25, fc 75"),
        *("3.00 ± 1.41", "40.5 %", "50.0 %", "8", "1 min 00 s", "2"),
    ]
    assert find(VIEWS, "he2018", "rows") is layers_view


def test_the_lowest_validation_error_of_a_column_is_bold() -> None:
    rows = [
        row(f"L0 from {keep}: {share} %", seed, 0.5, 9.0, epochs=epochs, validation_error=error + seed)
        | {"run": f"{epochs}, {keep}, {share}, {seed}"}
        for epochs, keep, share, error in (
            *((4, 0.5, 20, 3.0), (4, 0.5, 5, 4.0), (4, 0.8, 20, 2.0), (4, 0.8, 5, 5.0)),
            *((16, 0.5, 20, 1.0), (16, 0.8, 20, 1.5)),
        )
        for seed in (0, 1)
    ]
    lines = choice_view(
        Results("savarese2020-starts", "python -m evidence table savarese2020-starts", rows)
    ).splitlines()
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "---" not in line] == [
        ["epochs", "method", "20 %", "5 %"],
        ["4", "L0 from 0.5", "3.50 ± 0.71", "**4.50 ± 0.71**"],
        ["4", "L0 from 0.8", "**2.50 ± 0.71**", "5.50 ± 0.71"],
        ["16", "L0 from 0.5", "**1.50 ± 0.71**", "–"],
        ["16", "L0 from 0.8", "2.00 ± 0.71", "–"],
    ]
    assert find(VIEWS, "savarese2020-starts", "rows") is choice_view


NAMES = ("CS", "L0", "GMP", "GMP, one threshold", "RigL", "SNIP", "random, ERK")


@pytest.mark.parametrize(
    ("model", "shares"),
    [("lenet_300_100", ["50", "20", "10", "5", "2", "1", "0.5"]), ("conv4_16", ["50", "20", "5", "1", "0.5"])],
)
def test_every_method_is_asked_for_the_same_densities(model: str, shares: list[str]) -> None:
    entries = TABLES["savarese2020-small"].entries(3)
    keys = [entry.experiment.key for entry in entries]
    assert len(set(keys)) == len(keys)
    assert all(entry.experiment.recipe.seed == 3 for entry in entries)
    labels = [e.label for e in entries if (e.experiment.model, e.experiment.data) == (model, "fashion_mnist")]
    for name in NAMES:
        assert [label for label in labels if label.startswith(f"{name}:")] == [f"{name}: {share} %" for share in shares]


def test_every_training_has_the_same_number_of_steps() -> None:
    for entry in TABLES["savarese2020-small"].entries(0):
        recipe = entry.experiment.recipe
        steps = recipe.epochs * 60_000 // recipe.batch
        assert steps == (4 * 1200 if " epochs" in entry.label else 1200)
        rounds = entry.experiment.method.rounds
        assert rounds == (22 if entry.label.startswith("IMP") else 4 if entry.label.startswith("CS") else rounds)


@pytest.mark.parametrize("data", ["mnist", "fashion_mnist"])
def test_charts_of_the_paper_networks_exist(data: str) -> None:
    for model in ("lenet_300_100", "conv4_16", "conv6_16", "resnet20"):
        assert ("savarese2020", f"{model}-{data}") in FIGURES
    assert ("frankle2020", "resnet20-cifar10") in FIGURES


def test_the_short_view_of_layers_has_a_line_per_method() -> None:
    one = {
        "source": "measured",
        "model": "conv4_16",
        "data": "mnist",
        "macs": 50,
        "dense_macs": 100,
        "parameters": 1,
        "dense_parameters": 4,
    }
    rows = [
        {**one, "run": f"{name}{seed}", "method": name, "error": 1.0 + seed} for name in ("a", "b") for seed in (0, 1)
    ]
    lines = find(VIEWS, "he2018", "short")(Results("he2018", "c", rows)).splitlines()
    assert lines[2:] == [f"| Conv-4 (16), MNIST | {name} | 1.50 ± 0.71 | 50.0 % | 25.0 % |" for name in ("a", "b")]


def test_every_family_has_its_own_lowest() -> None:
    rows = [
        row(f"{name}: 5 %", 0, 0.05, 9.0, validation_error=error)
        for name, error in (("L0 from 1", 3.0), ("L0 from 2", 2.0), ("GMP until 1", 5.0), ("GMP until 2", 4.0))
    ]
    shown = choice_view(Results("savarese2020-tuning", "x", rows), ("L0", "GMP"))
    assert [line.split("|")[4].strip() for line in shown.splitlines()[2:]] == ["3.00", "**2.00**", "5.00", "**4.00**"]


def test_words_follow_from_paired_differences() -> None:
    """L0 is ahead at every seed; GMP and CS differ by as much as seeds do."""
    errors = {"L0": (1.0, 1.1, 1.2), "GMP": (2.0, 2.1, 2.3), "CS": (2.1, 2.0, 2.3)}
    dense = [row("dense", seed, 1.0, 0.9 + 0.1 * seed) for seed in range(4)]
    rows = [row(f"{name}: 2 %", seed, 0.02, one) for name, found in errors.items() for seed, one in enumerate(found)]
    lines = equal_view(Results("savarese2020-equal", "x", [*dense, *rows])).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["LeNet-300-100", "MNIST", "100 %", "dense", "1.05 ± 0.13", "–", "–", "–", "–", "4"]
    assert cells[1][3:] == ["L0", "1.10 ± 0.10", "**+0.10 ± 0.00**", "GMP; CS", "–", "–", "3"]
    assert [cells[2][n] for n in (3, 6, 7, 8)] == ["GMP", "–", "CS", "L0"]
    assert [cells[3][n] for n in (3, 6, 7, 8)] == ["CS", "–", "GMP", "L0"]


def test_equal_cost_takes_the_lengths_of_the_longer_dense_network_and_common_densities() -> None:
    told = (
        *("dense", "dense, 16 epochs", "CS: 2 %", "CS: 50 %", "CS, weights kept: 2 %"),
        *("L0: 2 %", "L0, 16 epochs: 2 %", "GMP, one threshold, 16 epochs: 2 %"),
    )
    rows = [row(name, seed, 0.02, 3.0 + number) for number, name in enumerate(told) for seed in range(2)]
    lines = equal_cost_view(Results("savarese2020-small", "x", rows)).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [(one[2], one[3], one[4].split(" ")[0]) for one in cells] == [
        *(("100 %", "dense", "4.00"), ("2 %", "L0", "9.00"), ("2 %", "GMP, one threshold", "10.00")),
        *(("2 %", "CS, ticket retrained", "5.00"), ("2 %", "CS, weights kept", "7.00")),
    ]
