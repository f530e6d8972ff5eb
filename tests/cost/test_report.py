"""`report(small, example, before=dense)`: every number before and after, and what stands for what."""

from __future__ import annotations

import torch
from torch import nn

import paring as pr


def nets() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 4)).eval(), torch.randn(3, 8)
    with torch.no_grad():
        dense[0].weight[57:] = 0
        dense[0].bias[57:] = 0
    return dense, pr.compact(dense, x)[0], x


def test_before_and_after_layer_by_layer() -> None:
    dense, small, x = nets()
    found = pr.report(small, x, before=dense, title="net")
    first, last, total, left = (
        next(line.split() for line in str(found).splitlines() if line.startswith(start))
        for start in ("0 ", "2 ", "total ", "left ")
    )
    assert first[1:] == [
        "Linear",
        "300",
        "→",
        "57",
        "2,700",
        "→",
        "513",
        "513",
        "2,400",
        "→",
        "456",
        "10,800",
        "→",
        "2,052",
    ]
    assert last[1:6] == ["Linear", "4", "1,204", "→", "232"]
    assert total[1:4] == ["3,904", "→", "745"]
    assert left[1] == f"{745 / 3904:.1%}"
    assert "a → b: before and after" in str(found)
    told = found.to_dict()
    assert told["before"]["total"] == pr.report(dense, x).total
    assert told["total"] == pr.report(small, x).total
    assert "before" not in pr.report(small, x).to_dict()
    assert "→" not in str(pr.report(small, x))


def test_time_before_and_after() -> None:
    dense, small, x = nets()
    line = next(
        line for line in str(pr.report(small, x, before=dense, latency=True)).splitlines() if line.startswith("latency")
    )
    assert "→" in line
    assert "ms at batch 3, one thread; speed " in line


def test_layers_that_are_gone_or_another_kind_are_shown() -> None:
    before, after = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), nn.Sequential(nn.Linear(3, 3)).eval()
    text = str(pr.report(after, torch.ones(2, 3), before=before))
    (norm,) = [line.split() for line in text.splitlines() if line.startswith("1 ")]
    assert norm[1:5] == ["BatchNorm1d", "3", "→", "-"]


def test_the_report_of_removal_says_before_and_after() -> None:
    dense, _, x = nets()
    report = pr.compact(dense, x)[1]
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "units", "zero", "folded", "merged", "unread", "dead", "but", "kept"]
    assert lines[1].split()[:4] == ["0", "300", "→", "57"]
    assert any(line.startswith("units a → b: before and after") for line in lines)
    assert any(line.startswith("parameters 3,904 → 745") for line in lines)
