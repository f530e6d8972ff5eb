"""`python -m evidence bench inference`: networks of the asked size, timed side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evidence.benches import inference
from evidence.benches.book import Asked
from evidence.benches.dead import SUBJECTS, width
from evidence.benches.runtimes import FORMATS, Formatted, Session, has_onnxruntime
from paring.cli.results import load
from paring.cost import measure


@pytest.mark.parametrize(("multiple", "off"), [(1, 0.02), (8, 0.15)])
def test_networks_come_near_their_budget(multiple: int, off: float) -> None:
    subject = SUBJECTS["lenet5_caffe"]
    found = inference.fitted(subject, (0.5, 0.25), multiple)
    for budget, (net, macs) in found.items():
        assert macs == measure(net, torch.randn(2, *subject.shape)).macs
        assert abs(macs / 2_293_000 / budget - 1) <= off
        assert all(width(net, group) % multiple == 0 for group in subject.groups)


def test_rows_hold_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MODELS", ("lenet5_caffe",)), ("BATCHES", (1,)), ("BUDGETS", (0.25,)), ("MULTIPLES", (8,))):
        monkeypatch.setattr(inference, name, value)
    rows = load(inference.run(Asked(tmp_path, 3))).rows
    assert [row["runtime"] for row in rows] == ["torch"] + ["onnxruntime"] * has_onnxruntime()
    for row in rows:
        assert row["dense_macs"] == 2_293_000
        assert row["mac_ratio"] == row["dense_macs"] / row["macs"]
        assert row["milliseconds"] > 0
        assert 0 < row["ratio_low"] <= row["ratio_high"]
        if row["ratio"] is None:  # too noisy to say
            assert row["realised"] is row["saved"] is None
        else:
            assert row["realised"] == row["ratio"] / row["mac_ratio"]
            assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["format"] in (*FORMATS, "session")


@torch.no_grad()
def test_every_runtime_computes_the_network() -> None:
    subject = SUBJECTS["conv_bn"]
    net, x = subject.make().eval(), torch.randn(3, *subject.shape)
    expected = net(x)
    for form in FORMATS.values():
        assert torch.allclose(Formatted(net, form)(x), expected, atol=1e-5)
    if has_onnxruntime():
        assert torch.allclose(Session(net, x)(x), expected, atol=1e-5)
