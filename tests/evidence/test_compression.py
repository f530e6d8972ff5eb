"""Compression experiments and their table: rows from decoded files, the mark of zero loss, views."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence.tables import TABLES, Entry, Table, run_table
from evidence.tables.compression import Compression, mark_zero_loss
from evidence.tables.reduced import reduced
from evidence.views.byte_views import bytes_chart, bytes_view, layer_bits_view, zero_loss_view
from evidence.views.views import FIGURES, VIEWS, find
from paring.cli.results import Results
from paring.compression import Codebooks, Combined, KMeans, Stage, Uniform
from paring.methods import GMP, Binarize, Dense
from paring.train import Recipe

RECIPE = Recipe(epochs=3, batch=50, lr=3e-3)


def one(compressor: Any, **told: Any) -> Compression:
    return Compression(
        "lenet_300_100", "digits", told.pop("method", Dense()), RECIPE, None, 300, compressor=compressor, **told
    )


def test_a_table_of_files(tmp_path: Path) -> None:
    def entries(seed: int) -> list[Entry]:
        points = (
            ("k-means: 16", KMeans((16,))),
            ("uniform: 8 bits", Uniform((8,))),
            ("uniform: 2 bits", Uniform((2,))),
        )
        return [Entry(name, replace(one(c), recipe=replace(RECIPE, seed=seed))) for name, c in points]

    table = Table("khoram2018", "a test", entries, after=mark_zero_loss)
    told: dict[str, Any] = {
        "runs": tmp_path / "runs",
        "results": tmp_path,
        "command": "python -m evidence table x",
        "progress": False,
    }
    found = run_table(table, seeds=2, **told)
    assert len(found.rows) == 6
    for row in found.rows:
        assert row["ratio"] == row["dense_bytes"] / row["bytes"]
        assert row["dense_bytes"] == 4 * (64 * 300 + 300 + 300 * 100 + 100 + 1010)
        bits = sum(
            layer["bits"] * count for layer, count in zip(row["layers"].values(), (19200, 30000, 1000), strict=True)
        )
        assert 0.8 * row["bytes"] < bits / 8 < row["bytes"]
        assert row["curve"] == [[row["bytes"], row["validation_error"]]]
    before = (tmp_path / "khoram2018.json").read_text()
    assert run_table(table, seeds=2, **told).rows == found.rows
    assert json.loads(before)["rows"] == list(found.rows)
    for view in (bytes_view(found), layer_bits_view(found)):
        assert "LeNet-300-100" in view
        assert "uniform: 8 bits" in view
    assert bytes_chart(found, "lenet_300_100") is not None
    assert bytes_chart(found, "lenet5_caffe") is None


def marked_rows(method: str, size: int, errors: tuple[float, ...]) -> list[dict[str, Any]]:
    dense = (1.0, 1.2, 1.4)
    told = {"model": "m", "data": "d", "source": "measured", "bytes": size, "method": method}
    return [
        {**told, "run": f"{method}{seed}", "seed": seed, "validation_error": e, "dense_validation_error": d}
        for seed, (e, d) in enumerate(zip(errors, dense, strict=False))
    ]


def test_zero_loss_is_a_bound_of_the_paired_difference() -> None:
    """A mean within the margin is not enough: the seeds have to agree. One seed cannot."""
    given = [
        *marked_rows("sure: 1", 300, (1.01, 1.21, 1.42)),
        *marked_rows("sure: 2", 200, (1.1, 1.3, 1.52)),
        *marked_rows("unsure: 1", 300, (0.7, 1.2, 1.7)),
        *marked_rows("one seed: 1", 300, (0.5,)),
    ]
    found = mark_zero_loss(Results("x", "c", given))
    assert {row["method"] for row in found.rows if row["zero_loss"]} == {"sure: 1"}


def test_the_margin_is_one_standard_error_of_the_dense_networks() -> None:
    margin = 0.2 / math.sqrt(3)
    for excess, marked in ((-1e-6, True), (1e-6, False)):
        rows = marked_rows("a: 1", 300, tuple(dense + margin + excess for dense in (1.0, 1.2, 1.4)))
        found = mark_zero_loss(Results("x", "c", rows))
        assert all(row["zero_loss"] == marked for row in found.rows)


def test_the_smallest_at_zero_loss_and_quoted_rows_are_shown() -> None:
    told = {"ratio": 2.0, "error": 1.5, "dense_error": 1.4}
    given = [{**row, **told} for row in (*marked_rows("a: 1", 300, (1.0, 1.2)), *marked_rows("b: 1", 200, (1.0, 1.2)))]
    given.append(
        {"run": "quoted/m/c", "source": "quoted", "model": "m", "data": "d", "method": "c", "ratio": 9.0, "error": 2}
    )
    marked = mark_zero_loss(Results("x", "c", given))
    lines = zero_loss_view(marked).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["b: 1", "a: 1"]
    assert "| m | c |  | – | 9.0 | 2.00 | – | – | – | quoted |" in bytes_view(marked)


def test_zero_loss_is_the_smallest_point_that_holds() -> None:
    rows = marked_rows
    given = [
        *rows("a: 1", 300, (1.0, 1.2, 1.4)),
        *rows("a: 2", 200, (1.01, 1.2, 1.4)),
        *rows("a: 3", 100, (1.3, 1.6, 1.7)),
    ]
    marked = mark_zero_loss(Results("x", "c", [*given, *rows("b: 1", 50, (9.0, 9.0, 9.0))]))
    assert {row["method"] for row in marked.rows if row["zero_loss"]} == {"a: 2"}
    assert sum(row["zero_loss"] for row in marked.rows) == 3


def test_binary_weights_are_the_same_in_the_decoded_file(tmp_path: Path) -> None:
    method = Binarize(weights="sign", keep_first=False)
    row = one(Uniform((4,)), method=method, small_bits=0).run(tmp_path, progress=False)
    assert row["binary"] == {"fc1.weight": True, "fc2.weight": True}
    assert row["one_bit_bytes"] is not None
    assert row["bytes"] < 1.2 * row["one_bit_bytes"]
    assert all(row["layers"][name]["bits"] < 1.1 for name in row["binary"])
    assert row["within"]


def test_prune_remove_share_with_distillation(tmp_path: Path) -> None:
    pruned = Combined((Stage(GMP(density=0.2, every=5), 4),), Codebooks(4, keep_zeros=True, rounds=3))
    row = one(pruned, share=0.5).run(tmp_path, progress=False)
    assert row["nonzeros"] <= 0.2 * 50_200 + 1
    assert row["ratio"] > 20
    assert row["dense_error"] < 20


def test_a_bound_needs_validation_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation=0"):
        replace(one(Uniform()), validation=0).run(tmp_path, progress=False)


@pytest.mark.parametrize("name", ["khoram2018", "khoram2018-cifar"])
def test_the_tables_are_defined(name: str) -> None:
    entries = TABLES[name].entries(0)
    keys = [entry.experiment.key for entry in entries]
    assert len(set(keys)) == len(keys)
    assert len({(e.experiment.model, e.label) for e in entries}) == len(entries)
    assert all(":" in entry.label and entry.experiment.validation for entry in entries)
    small = reduced(entries[0].experiment, 1, 500)
    assert isinstance(small, Compression)
    assert small.source.recipe.epochs == 1
    assert small.source.examples == 500
    assert find(VIEWS, name, "rows") is bytes_view
    assert find(FIGURES, name, "lenet5_caffe").func is bytes_chart  # type: ignore[attr-defined,union-attr]
