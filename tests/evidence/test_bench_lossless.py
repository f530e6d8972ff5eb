"""The benchmark of files without loss: rows of networks that are there, and the bound."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from evidence.benches import lossless
from evidence.benches.book import Asked
from evidence.views.bench_views import lossless_view
from paring.cli.results import load


def test_the_bound_is_what_exponents_leave() -> None:
    values = torch.tensor([1.0, -1.5, 2.0, 3.0] * 50)  # two exponents, equally often
    assert lossless.bound(values, "float32") == pytest.approx(200 * (1 + 1 + 23))
    assert lossless.bound(values.bfloat16(), "bfloat16") == pytest.approx(200 * (1 + 1 + 7))
    assert lossless.bound(values.half(), "float16") == pytest.approx(200 * (1 + 1 + 10))
    uneven = torch.tensor([1.0] * 75 + [2.0] * 25)
    share = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert lossless.bound(uneven, "float32") == pytest.approx(100 * (24 + share))


def test_rows_of_networks_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_sentences" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "some_sentences" / "__init__.py").write_text("raise RuntimeError('nothing is imported')")
    weights = torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * 0.05
    state = {"weight": weights, "pooler.weight": weights, "positions": torch.arange(9)}
    safetensors.torch.save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        lossless,
        "NETWORKS",
        {"there": ("some_sentences", lossless.minilm), "not": ("no_such_package", lossless.minilm)},
    )
    path = lossless.run(Asked(results=tmp_path / "results", repeats=1))
    found = load(path)
    assert [row["run"] for row in found.rows] == ["there/float32", "there/float16", "there/bfloat16"]
    for row in found.rows:
        assert row["raw"] == 20_000 * (4 if row["dtype"] == "float32" else 2)
        assert row["bytes"] < 1.02 * row["bound"] < row["raw"]
    assert lossless_view(found).count("there, ") == 3
