"""The benchmark of compression after training: its peers, its curve, its speech features, and one subject end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evidence.benches import compress_any
from evidence.benches.any_subjects import Crepe, Subject, Voice, sentences
from evidence.benches.book import Asked
from evidence.benches.rounded_peers import integers
from evidence.benches.speech import filters, frames, mels
from evidence.views.compress_any_views import bytes_at, compress_any_view
from paring.cli.results import load
from paring.compression.second_moments import second_moments


def test_integers_have_so_many_levels_and_gptq_loses_less() -> None:
    pytest.importorskip("zstandard")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32))
    x = torch.randn(400, 8) @ torch.randn(8, 64) + 0.1 * torch.randn(400, 64)
    eight, large = integers(net, 8)
    four, small = integers(net, 4, 32)
    weight = four.get_parameter("0.weight").detach().view(32, 2, 32)
    assert all(len(group.unique()) <= 16 for group in weight.flatten(0, 1))
    assert small < 0.7 * large
    given, near = (one.get_parameter("0.weight").detach() for one in (net, eight))
    assert float((near - given).abs().max()) < float(given.abs().max()) / 200
    moments = second_moments({"0.weight": net.get_parameter("0.weight")}, lambda: net(x))
    corrected, _ = integers(net, 4, 32, moments)
    with torch.no_grad():
        lost = [float(F.mse_loss(one(x), net(x))) for one in (corrected, four)]
    assert lost[0] < 0.7 * lost[1]


def test_bytes_between_points() -> None:
    curve = [{"loss": 0.01, "bytes": 100}, {"loss": 0.0001, "bytes": 200}]
    assert bytes_at(curve, 0.001) == pytest.approx(150)
    assert bytes_at(curve, 0.02) is None


def test_features_of_speech() -> None:
    sound = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
    heard = mels(sound)
    assert heard.shape == (101, 40)
    edges = filters()[int(heard[50].argmax())].nonzero().flatten() * 40  # Hz
    assert int(edges.min()) - 40 <= 440 <= int(edges.max()) + 40
    parts = frames(sound)
    assert parts.shape == (94, 1024)
    assert torch.allclose(parts.std(1), torch.ones(94), atol=1e-5)
    assert Crepe(1)(parts[:2]).shape == (2, 360)
    assert Voice()(heard[None]).shape == (1, 256)
    assert len(sentences()) > 1500


def test_rows_of_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    batches = [(x, net(x).detach()) for x in torch.randn(3, 40, 16)]
    subject = Subject(
        net, batches[:2], batches[2:], lambda one, pair: F.mse_loss(one(pair[0]), pair[1]), lambda one: {"close": 1.0}
    )
    monkeypatch.setattr(compress_any, "SUBJECTS", {"small": lambda: subject, "missing": lambda: None})
    monkeypatch.setattr(compress_any, "WITHIN", {"small": 0.01, "missing": 0.01})
    monkeypatch.setattr(compress_any, "BITS", (6.0, 2.0))
    monkeypatch.setattr(compress_any, "GRIDS", (0.2,))
    path = compress_any.run(Asked(tmp_path, 1))
    results = load(path)
    found = {row["way"]: row for row in results.rows}
    assert set(found) == set(compress_any.ways_of("small"))
    assert found["as it is"]["loss"] == 0
    assert found["calibrated, 2 bits"]["bytes"] < found["calibrated, 6 bits"]["bytes"] < found["as it is"]["bytes"]
    assert found["within 0.01"]["loss"] <= 0.01
    assert compress_any.run(Asked(tmp_path, 1)) == path
    assert load(path).rows == results.rows  # nothing is measured twice
    assert "GPTQ, 4 bits in groups of 32 + zstd" in compress_any_view(results)
