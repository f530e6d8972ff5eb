"""`paring pack job.py`: anyone's network from a job file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paring as pr
from marks import BY_HAND
from paring.cli.main import main

pytestmark = BY_HAND

JOB = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
X = torch.randn(6, 32, 12)
NET = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 12))


def net():
    return NET


def batches():
    return [{"x": x} for x in X[:3]]


def validate():
    return [{"x": x} for x in X[3:]]


def loss(net, batch):
    return F.mse_loss(net(batch["x"]), NET(batch["x"]).detach())


def metric(net):
    return float((net(X[5]) - NET(X[5])).abs().max())
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(JOB)
    return path


def test_a_network_of_ones_own(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pare"
    assert main(["pack", str(job), "--out", str(out), "--max-loss-increase", "1e-4", "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert f"{out}: {out.stat().st_size:,} bytes" in said.out
    assert "loss 0.00000 -> 0.0000" in said.out
    assert "(bound 0.00010)" in said.out
    assert "metric 0 -> 0.0" in said.out
    assert "best so far" in said.err
    names: dict[str, object] = {}
    exec(JOB, names)
    given = names["NET"]
    assert isinstance(given, nn.Module)
    assert out.stat().st_size < 4 * sum(p.numel() for p in given.parameters()) / 3
    back = pr.unpack(lambda: given.__class__(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 12)), out)
    x = names["X"]
    assert isinstance(x, torch.Tensor)
    with torch.no_grad():
        assert float((back(x[3:]) - given(x[3:])).square().mean()) <= 1e-4


def test_what_breaks_no_bound_is_written_as_it_is(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.pare"
    words = [
        "pack",
        str(job),
        "--out",
        str(out),
        "--compressor",
        "kmeans:values=2",
        "--max-loss-increase",
        "0",
        "--quiet",
    ]
    assert main(words) == 0
    assert "the network is written as it is: none of " in capsys.readouterr().err
    assert out.exists()


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        ("", "", "say how much its loss may grow, --max-loss-increase 0.01"),
        ("", "--max-loss-increase -1", "say how much its loss may grow"),
        ("", "--max-loss-increase nan", "say how much its loss may grow"),
        ("", "--max-loss-increase 1 --model lenet5", "--model is for built-in networks"),
        ("", "--max-loss-increase 1 --units 0.5", "--units is for built-in networks"),
        ("", "--max-loss-increase 1 --compressor best", "--compressor best: there is no such compressor"),
        ("def net(): return 1", "--max-loss-increase 1", "net() has to return a torch.nn.Module"),
        ("def validate(): return []", "--max-loss-increase 1", "validate is empty"),
        ("def loss(net, batch): return 1.0", "--max-loss-increase 1", "returned a float; return the tensor itself"),
        (
            "def loss(net, batch): return 1 / 0 * net(batch['x']).sum()",
            "--max-loss-increase 1",
            "in loss(): ZeroDivisionError",
        ),
        ("def batches(): return iter([])", "--max-loss-increase 1", "can be gone through only once"),
    ],
)
def test_refused_in_one_sentence(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str, told: str
) -> None:
    job.write_text(JOB + "\n\n" + change + "\n")
    out = tmp_path / "net.pare"
    out.write_bytes(b"before")
    assert main(["pack", str(job), "--out", str(out), "--quiet", *words.split()]) != 0
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert out.read_bytes() == b"before"  # nothing is lost


def test_there_is_no_such_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pack", str(tmp_path / "no.py"), "--out", str(tmp_path / "a.pare"), "--max-loss-increase", "1"]
    assert main(words) != 0
    assert "there is no such file" in capsys.readouterr().err
