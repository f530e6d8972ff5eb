"""`paring prune`: from a job file to small networks, a page and numbers; resumed bit for bit; refusals that name the line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from marks import CUT_SHORT
from paring.cli.prune_command import PruneArguments, _budgets
from paring.cli.prune_page import prune_page
from paring.cli.prune_progress import PruneProgress
from paring.cli.prune_result import size_of
from paring.core import Progress
from tests.cli.command_words import flat, paring

pytestmark = CUT_SHORT

JOB = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from paring.data import load

DATA = load("digits", validation=200)


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))


def batches():
    return DataLoader(TensorDataset(DATA.train.x[:256], DATA.train.y[:256]), batch_size=64, shuffle=True)


def loss(net, batch):
    x, y = batch
    return F.cross_entropy(net(x), y)


def validate():
    return [(DATA.validation.x, DATA.validation.y)]


def metric(net):
    with torch.no_grad():
        return 100 * float((net(DATA.validation.x).argmax(1) == DATA.validation.y).float().mean())


def optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)
"""
LINE = 1 + JOB[: JOB.index("x, y = batch")].count("\n")
SHORT = ("--batches", "2", "--rounds", "2", "--threads", "1")


def untimed(value: Any) -> Any:
    """A result without seconds."""
    if isinstance(value, dict):
        return {name: untimed(one) for name, one in value.items() if not name.endswith("_seconds")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "mine.py"
    path.write_text(JOB)
    return path


@pytest.fixture(scope="module")
def curve(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two sizes."""
    out = tmp_path_factory.mktemp("curve") / "run"
    assert paring("prune", str(job), "--macs", "0.3", "0.6", "--epochs", "2", "--out", str(out), "--quiet", *SHORT) == 0
    return out


def test_what_is_not_as_asked_is_said_once(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--macs", "0.9", "--multiple-of", "16", "--epochs", "0", "--out", str(tmp_path / "run"), *SHORT)
    assert paring("prune", str(job), *words) == 0
    shown = capsys.readouterr()
    assert shown.out.count("note: more went than asked") == 1
    assert "more went than asked" not in shown.err


def test_several_sizes_give_a_curve(curve: Path) -> None:
    row = json.loads((curve / "result.json").read_text())
    assert [one["size"] for one in row["networks"]] == ["macs 0.6", "macs 0.3"]
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    assert row["dense_parameters"] == sum(p.numel() for p in dense.parameters())
    names: dict[str, Any] = {}
    exec(JOB, names)
    for one, asked in zip(row["networks"], (0.6, 0.3), strict=True):
        assert 0.8 * asked < one["macs"] / row["dense_macs"] <= asked
        small = pr.load(dense, curve / one["file"])
        assert sum(p.numel() for p in small.parameters()) == one["parameters"]
        assert names["metric"](small) == pytest.approx(one["metric"])
        assert len(one["losses"]) == 2
        assert one["search_seconds"] > 0
    for one in row["networks"]:
        path = [share for share, _ in one["path"]]
        assert path[0] == 1
        assert all(b <= a + 0.05 for a, b in pairwise(path))  # after each round what still fits is opened
    assert all(a[1] <= b[1] for one in row["networks"] for a, b in pairwise(one["path"]))
    assert json.loads((curve / "config.json").read_text())["run"] == row["run"]


def test_the_page_shows_groups_layers_and_why(curve: Path) -> None:
    page = (curve / "report.html").read_text()
    for text in (
        "macs 0.6",
        "macs 0.3",
        "Before and after",
        "Groups of units",
        "What was chosen, and why",
        "Fisher",
        "Times",
    ):
        assert text in page
    assert page.count("<svg") == 5  # loss, metric, units left, the search, training
    assert re.findall(r"""(?:src|href|data|action)\s*=\s*["'](?!#)[^"']*|@import|url\((?!#)[^)]*""", page) == []


def test_names_are_escaped_on_the_page(curve: Path) -> None:
    row = json.loads((curve / "result.json").read_text().replace("macs 0.6", "<script>alert(1)</script>"))
    row["notes"] = ["a <script> in a note"]
    row["dense"]["layers"][0]["name"] = row["networks"][0]["groups"][0]["layers"][0] = "<script>"
    page = prune_page("<script>", row)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_finished_run_is_only_read(
    curve: Path, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paring.cli.prune_command.prune", None)
    words = ["prune", str(job), "--macs", "0.6", "0.3", "--epochs", "2", "--out", str(curve), *SHORT]
    assert paring(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((curve / "result.json").read_text())
    assert paring(*words) == 0
    shown = capsys.readouterr()
    assert "finished already and only read" in shown.err
    assert re.search(r"dense +[\d.]+ +[\d.]+ +2,080 ", shown.out)
    assert re.search(r"macs 0.3 +[\d.]+ +[\d.]+ +[\d,]+ \(\d+ %\)", shown.out)
    assert paring(*words[:-1], "2", "--seed", "1") == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [5, 14], ids=["first network, second epoch", "second network, second epoch"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    stop: int,
    curve: Path,
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "prune",
        str(job),
        "--macs",
        "0.6",
        "0.3",
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        *SHORT,
    ]
    told: Callable[..., None] = PruneProgress.told
    steps: list[Any] = []

    def stopping(self: PruneProgress, progress: Any) -> None:
        told(self, progress)
        steps.append(progress)
        if len(steps) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(PruneProgress, "told", stopping)
    assert paring(*words) == 130
    assert "interrupted; the same command goes on from the last epoch" in capsys.readouterr().err
    assert not (tmp_path / "run/result.json").exists()
    assert paring(*words) == 0
    assert 16 < len(steps) < 16 + 4  # an epoch of four steps that had begun was done again
    for name in ("small-macs0.6.safetensors", "small-macs0.3.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (curve / name).read_bytes()
    rows = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", curve)]
    assert untimed(rows[0]) == untimed(rows[1])


def test_progress_is_told_in_lines(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--params", "0.5", "--macs", "0.7", "--epochs", "1", "--runs", str(tmp_path / "runs"), *SHORT]
    assert paring("prune", str(job), *words) == 0
    shown = capsys.readouterr()
    assert "mine.py: choosing what goes for macs 0.7, params 0.5" in shown.err
    assert re.search(r"mine.py: macs 0.7, params 0.5: epoch 1, loss [\d.]+ \(1/1\)", shown.err)
    (folder,) = (tmp_path / "runs").glob("mine-prune-*")
    assert (folder / "small.safetensors").exists()
    assert folder.name in (tmp_path / "runs/index.html").read_text()
    assert paring("pack", str(folder), "--out", str(tmp_path / "net.pare"), "--quiet") == 0
    assert paring("report", str(folder)) == 2
    assert "is a run of paring prune" in capsys.readouterr().err


def test_progress_is_a_bar_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    (tmp_path / "choice-0.pt").touch()
    with PruneProgress("job", tmp_path, ["macs 0.5", "macs 0.3"], 2, True) as progress:
        assert progress.bar.tasks[0].fields["note"] == "choosing what goes"
        progress.told(Progress(3, 4, "epoch 2, loss 0.5"))
        assert (progress.bar.tasks[0].completed, progress.bar.tasks[0].total) == (750, 2000)
        assert progress.bar.tasks[0].fields["note"] == "macs 0.5: epoch 2, loss 0.5"
        progress.told(Progress(4, 4, "epoch 2, loss 0.5"))
        assert progress.bar.tasks[0].fields["note"] == "choosing what goes for macs 0.3"
        (tmp_path / "choice-1.pt").touch()
        progress.told(Progress(2, 4, "epoch 1, loss 0.5"))
        assert progress.bar.tasks[0].completed == 1500
    assert "(1/2)" not in capsys.readouterr().err


def test_sizes_go_together() -> None:
    options = PruneArguments(Path("job.py"), macs=(0.3, 0.6), params=(0.5,), latency=(0.4, 0.7), memory=(0.9,))
    found = [(one.macs, one.params, one.latency, one.memory) for one in _budgets(options)]
    assert found == [(0.6, 0.5, 0.7, 0.9), (0.3, 0.5, 0.4, 0.9)]
    assert next(size_of(one) for one in _budgets(options)) == "macs 0.6, params 0.5, latency 0.7, memory 0.9"


def test_a_measured_time_is_on_the_page(curve: Path) -> None:
    row = json.loads((curve / "result.json").read_text())
    row["networks"][1]["shares"]["latency"] = 0.42
    row["networks"][0]["shares"]["memory"] = 0.83
    page = prune_page("t", row)
    assert re.search(r"measured time.*100 %.*–.*42 %", page)
    assert re.search(r"measured peak memory.*100 %.*83 %.*–", page)


def test_init_writes_a_job_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert paring("prune", "--init") == 0
    assert "paring prune job.py --macs 0.5 --epochs 5" in capsys.readouterr().out
    text = Path("job.py").read_text()
    assert paring("prune", "--init", "job.py") == 2
    assert "is there already and stays as it is" in capsys.readouterr().err
    assert Path("job.py").read_text() == text
    assert paring("prune", "job.py", "--macs", "0.5", "--epochs", "1", "--quiet", "--json", *SHORT) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["networks"][0]["macs"] <= 0.5 * row["dense_macs"]
    assert row["dense"]["metric"] > 85
    assert row["networks"][0]["metric"] > 85


def test_a_run_of_train_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = "train --data digits --method dense --epochs 2 --validation 200 --batch 200 --lr 0.01 --quiet --json --threads 1"
    assert paring(*train.split()) == 0
    trained = json.loads(capsys.readouterr().out)
    (folder,) = Path("runs").glob("lenet_300_100-*")
    assert paring("prune", str(folder), "--params", "0.2", "--epochs", "1", "--json", "--quiet", *SHORT) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["model"], row["data"], row["classes"]) == ("lenet_300_100", "digits", 10)
    assert row["dense"]["metric"] == pytest.approx(trained["error"])
    assert row["parameters"] <= 0.2 * trained["parameters"]
    words = [
        "--model",
        "lenet_300_100",
        "--data",
        "digits",
        "--params",
        "0.2",
        "--epochs",
        "0",
        "--json",
        "--quiet",
        *SHORT,
    ]
    assert paring("prune", str(folder / "small.safetensors"), *words) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["dense"]["metric"] == row["dense"]["metric"]
    assert again["networks"][0]["steps"] == 0


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words", "status", "why"),
    [
        (None, "--macs 0.5", 2, "job.py: there is no such file; paring prune --init job.py writes one"),
        (JOB, "", 2, "ask for a size: --macs 0.5"),
        (JOB, "--macs 1.5", 2, "Budget(macs=1.5): a fraction of the dense network, in (0, 1]"),
        (JOB, "--macs 0.5 0.5", 2, "a size stands there twice"),
        (JOB, "--macs 0.5 0.4 0.3 --params 0.5 0.4", 2, "sizes that do not go together, --macs 3 and --params 2: give as many of each"),
        (JOB, "--macs 0.5 --rounds 0", 2, "rounds=0): a whole number, at least 1"),
        (JOB, "--macs 0.5 --teacher 2", 2, "Teacher(weight=2.0): a share of the loss, in [0, 1]"),
        (JOB, "--macs 0.5 --at outputs", 2, "'outputs' is none of units, inputs, weights"),
        (JOB, "--macs 0.5 --model lenet5", 2, "--model and --data name a built-in network"),
        (JOB, "--macs 0.5 --init", 2, "--init takes the name of the file to write, and nothing else"),
        (JOB, "--macs 0.001", 1, "Budget(macs=0.001) cannot be met: with as few units as may stay in each of the 2 gated groups"),
        ("x = 1\n", "--macs 0.5", 2, "job.py has no net(): a job file defines net() and batches()"),
        ("def nets(): pass\n", "--macs 0.5", 2, "job.py has no net() (nets() is there; rename it if it is that)"),
        ("net = 3\ndef batches(): pass\n", "--macs 0.5", 2, "job.py: net has to be a function, and is a value of type int"),
        ("x = 1\ndef net(:\n", "--macs 0.5", 1, "job.py, line 2: invalid syntax"),
        ("x = 1\nx / 0\n", "--macs 0.5", 1, "job.py, line 2: ZeroDivisionError: division by zero"),
        ("raise SystemExit('no')\n", "--macs 0.5", 1, "job.py, line 1: SystemExit: no"),
        ("import not_there\n", "--macs 0.5", 1, "job.py, line 1: ModuleNotFoundError: No module named 'not_there'"),
        (JOB.replace("return nn.S", "return 1 if 1 else nn.S"), "--macs 0.5", 1, "net() has to return a torch.nn.Module, and returned a value of type int"),
        (JOB.replace("return DataLoader", "DataLoader"), "--macs 0.5", 1, "has to return batches, such as a DataLoader or a list, and returned nothing"),
        (JOB.replace("x, y = batch", "x, y, z = batch"), "--macs 0.5", 1, f"job.py, line {LINE}, in loss(): ValueError: not enough values to unpack"),
        (JOB.replace("cross_entropy(net(x), y)", "cross_entropy(net(x), y).detach()"), "--macs 0.5", 1, "the loss does not depend on the network"),
        ("a\x00b", "--macs 0.5", 1, "job.py"),
        (JOB.replace("def metric(net)", "def metric(net, x)"), "--macs 0.5", 1, "called as metric(net), and that does not fit: missing a required"),
        (JOB.replace("def optimizer(parameters)", "def optimizer()"), "--macs 0.5", 1, "called as optimizer(parameters), and that does not fit: too many"),
        (JOB + "def example(): return 3\n", "--macs 0.5", 1, "example(): an example of what the network takes is a tensor"),
    ],
)  # fmt: skip
def test_refused_with_the_line(
    text: str | None, words: str, status: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("job.py").write_text(text)
    assert paring("prune", "job.py", *shlex.split(words), "--quiet", "--batches", "1") == status
    shown = flat(capsys.readouterr().err)
    assert why in shown
    assert "Traceback" not in shown
    assert "fault of paring" not in shown


def test_a_name_that_is_nearly_right_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a\x1b[31m.py").write_text(JOB.replace("def validate", "def validation"))
    assert paring("prune", "a\x1b[31m.py", "--macs", "0.001") == 1
    shown = capsys.readouterr().err
    assert "validation() is not used: did you mean 'validate'?" in shown
    assert "\x1b" not in shown
    assert r"a\x1b[31m.py" in shown


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"networks": []}, "holds no result of paring prune"),
        ({"networks": [3]}, "holds no result of paring prune"),
        ({"dense": {"loss": "low"}}, "'loss' is 'low'"),
        ({"method": "l0"}, "holds no result of paring prune"),
    ],
)
def test_results_of_others_are_refused(
    change: dict[str, Any], why: str, curve: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (curve / "result.json").read_text()
    (curve / "result.json").write_text(json.dumps(json.loads(before) | change))
    try:
        words = ["--macs", "0.6", "0.3", "--epochs", "2", "--out", str(curve), *SHORT]
        assert paring("prune", str(job), *words) == 1
        assert why in capsys.readouterr().err
    finally:
        (curve / "result.json").write_text(before)


def test_the_network_is_what_was_given(job: Path, tmp_path: Path) -> None:
    """What is imported beside a job, and what it leaves in `sys`, is gone afterwards."""
    import sys

    from paring.cli.job_file import opened

    before, modules = list(sys.path), set(sys.modules)
    with opened(job, 0) as found:
        assert isinstance(found.net, nn.Module)
        assert sys.path[0] == str(job.parent)
        x = torch.ones(1, 1, 8, 8)
        first = found.net(x)
    with opened(job, 0) as again:
        assert torch.equal(again.net(x), first)
    assert sys.path == before
    assert "mine" not in set(sys.modules) - modules
