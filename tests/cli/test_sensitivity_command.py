"""`paring sensitivity`: a table, pictures and numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from paring.cli.sensitivity_command import sensitivity_page
from paring.pruning import Sensitivity
from paring.pruning.sensitivity import GroupTrials, Trial
from tests.cli.command_words import paring

JOB = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


def batches():
    return [(torch.randn(20, 6), torch.randint(3, (20,))) for _ in range(2)]
"""


def test_a_table_pictures_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(JOB)
    assert paring("sensitivity", "job.py", "--shares", "0.5", "--within", "inf", "--threads", "1") == 0
    shown = capsys.readouterr()
    assert re.search(r"^0 +8 +56 +48 +[\d.]+ → [\d.]+ +50%, MACs -\d+%$", shown.out, re.MULTILINE)
    assert "job.py: 2 of 2 groups" in shown.err
    (folder,) = Path("runs").iterdir()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "2 of 2" in page
    assert json.loads((folder / "sensitivity.json").read_text())["groups"][0]["units"] == 8
    first = (folder / "sensitivity.json").read_bytes()
    assert (
        paring("sensitivity", "job.py", "--shares", "0.5", "--within", "0.1", "--threads", "1", "--quiet", "--json")
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["groups"][0]["trials"] == json.loads(first)["groups"][0]["trials"]
    assert told == json.loads((folder / "sensitivity.json").read_text())


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        ("nothing.py", 2, "nothing.py: there is no such file"),
        ("job.py --shares 1", 2, "--shares 1.0: shares of a group's units, each in (0, 1)"),
        ("job.py --within -1", 2, "--within -1: a share of the loss, at least 0"),
        ("job.py --batches 0", 2, "batches=0): a whole number, at least 1"),
        ("job.py --at units:9", 1, "has no layer '9'"),
    ],
)
def test_refused_with_the_reason(
    words: str,
    status: int,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(JOB)
    assert paring("sensitivity", *words.split(), "--quiet") == status
    assert why in capsys.readouterr().err


def test_losses_that_are_not_finite_and_names_are_harmless() -> None:
    def row(name: str, *losses: float) -> GroupTrials:
        return GroupTrials(
            (name,), 4, 10, 20, tuple(Trial(0.25 * n, n, 0.5, 0.5, one, None) for n, one in enumerate(losses, 1))
        )

    rows = (row("<script>", 1.0, math.inf), row("b", math.nan, math.nan), row("c", 1.2, 1.3))
    found = Sensitivity("net", 1.0, None, 30, 60, rows)
    page = sensitivity_page("<b>", found, 0.05)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 2
    assert "1 of 3" in page
    nothing = Sensitivity("net", math.nan, None, 30, 60, (rows[1],))
    assert "no loss is finite" in sensitivity_page("t", nothing, 0.05)
    json.dumps(found.to_dict(), allow_nan=False)
