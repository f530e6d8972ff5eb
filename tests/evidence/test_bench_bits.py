"""The bench of bits on small subjects: it measures, and its rows say what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evidence.bench import BENCHES, Asked
from evidence.benches import bits
from evidence.views.bench_views import bits_view
from paring.bits.contract import binary
from paring.cli.results import load
from paring.hard import Sign


def test_subjects_are_those_that_were_asked_for() -> None:
    assert {"linear-4096x4096-b1", "linear-4096x4096-b64", "conv-256x256x3x3-14x14", "convnet8"} <= bits.SUBJECTS.keys()
    assert bits.SUBJECTS["linear-4096x4096-b64"].batch == 64
    conv = bits.made(bits.convolution(256, 256, 14, 1), 0.5)[1]
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.shape == (256, 256, 3, 3)
    assert binary(conv.weight)
    assert 0.49 < float((conv.weight > 0).float().mean()) < 0.51


def tiny() -> nn.Sequential:
    """A network with one layer between the first and the last."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3),
        Sign(),
        nn.Conv2d(64, 64, 3),
        nn.BatchNorm2d(64),
        Sign(),
        nn.Flatten(),
        nn.Linear(64 * 16, 4),
    )


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "linear": bits.linear(640, 320, 2),
        "conv": bits.convolution(64, 64, 6, 1),
        "convnet8": bits.Subject(tiny, (3, 8, 8), 2, layer=False),
    }
    monkeypatch.setattr(bits, "SUBJECTS", small)
    path = BENCHES["bits"].run(Asked(tmp_path, 2))
    results = load(path)
    rows = {row["model"]: row for row in results.rows}
    assert list(rows) == list(small)
    for row in rows.values():
        assert row["ratio"] is None or row["ratio"] > 0
        assert row["ratio_cpu"] > 0
        assert row["threads"] == torch.get_num_threads()
        assert row["weight_bytes"] * 8 >= row["weights"]
        assert row["pare_bytes_skewed"] < row["pare_bytes"] < row["fp32_bytes"]
    assert rows["linear"]["weight_bytes"] * 8 == rows["linear"]["weights"] == 640 * 320
    assert rows["conv"]["fp32_bytes"] == 4 * 64 * 64 * 9
    assert 0.46 < 8 * rows["conv"]["pare_bytes_skewed"] / rows["conv"]["weights"] < 0.6, (
        "the entropy of 9 in 10 is 0.469"
    )
    assert "ratio_inside" not in rows["convnet8"]
    told = capsys.readouterr().out
    assert all(name in told for name in small)
    table = bits_view(results)
    assert "ConvNet8" in table
    assert table.splitlines()[0].count("in CPU time") == 2
    assert len(table.splitlines()) == 2 + len(small)
    monkeypatch.setattr(bits, "compare", None)
    assert load(BENCHES["bits"].run(Asked(tmp_path, 2))).rows == results.rows, "nothing is measured twice"
