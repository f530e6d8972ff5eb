"""The command line, in this process: help that teaches, refusals that say why, runs that are named, kept and resumed."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import paring as pr
from marks import CUT_SHORT
from paring.cli.main import COMMANDS
from paring.cli.method_list import METHODS, method_name
from paring.core import GOALS
from tests.cli.command_words import flat, paring

pytestmark = CUT_SHORT

TIMES = ("train_seconds", "train_cpu_seconds", "finish_seconds")
FILES = {"config.json", "metrics.jsonl", "checkpoint.pt", "result.json", "small.safetensors", "report.html"}
TRAIN = ["train", "--data", "digits", "--price", "budget:params=0.2", "--threads", "1", "--quiet"]


def examples(text: str) -> list[list[str]]:
    """The words of every example in a help text."""
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  paring ")]


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=lambda words: " ".join(words) or "nothing")
def test_overview_lists_commands_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert paring(*words) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", shown, re.MULTILINE)
    assert len(examples(shown)) >= 4
    assert {example[0] for example in examples(shown)} <= set(COMMANDS)


def test_help_of_train_lists_every_method_by_goal(capsys: pytest.CaptureFixture[str]) -> None:
    assert paring("train", "--help") == 0
    shown = capsys.readouterr().out
    for heading in GOALS.values():
        assert f"\n  {heading}\n" in shown
    for name, kind in METHODS.items():
        assert re.search(rf"^    {name} +\S", shown, re.MULTILINE), f"{name} is not listed"
        assert kind.goal in GOALS


def test_methods_are_found_by_themselves() -> None:
    own = {kind for kind in map(pr.methods.__dict__.get, pr.methods.__all__) if isinstance(kind, type)}
    assert {kind for kind in own if issubclass(kind, pr.Method)} - set(METHODS.values()) == {pr.Shrink}
    assert [method_name(kind) for kind in (pr.RigL, pr.AtInit, pr.SparseVD, pr.L0, pr.Dense, pr.DNW)] == [
        "rigl", "at_init", "sparse_vd", "l0", "dense", "dnw",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And a default for each option, none of which is empty."""
    assert paring(name, "--help") == 0
    shown, problems = capsys.readouterr()
    assert problems == ""
    assert f"usage: paring {name}" in shown
    assert examples(shown)
    assert all(example[0] == name for example in examples(shown))
    assert "dataclass" not in shown.lower()
    assert "(default: )" not in flat(shown)


class _Reached(BaseException):
    """The command got as far as its work."""


def test_every_example_of_every_help_is_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise _Reached

    for target in (
        "paring.cli.experiment.Experiment.dataset",
        "paring.cli.experiment.Experiment.run",
        "paring.cli.demo.main",
        "paring.cli.sweep.sweep_command.sweep",
        "paring.data.fetch",
        "paring.data.status",
        "paring.cli.packing.given",
        "paring.cli.packing.pack_job",
        "paring.cli.prune_command.job_of",
        "paring.cli.prune_command.write_example",
        "paring.cli.sensitivity_command.job_of",
        "paring.cli.unpacking.File",
    ):
        monkeypatch.setattr(target, reached)
    for command in ("prune_command", "sensitivity_command", "packing"):
        monkeypatch.setattr(f"paring.cli.{command}.check_there", lambda path: None)
    monkeypatch.chdir(tmp_path)
    texts = []
    for words in ([], *([name, "--help"] for name in COMMANDS)):
        paring(*words)
        texts.append(capsys.readouterr().out)
    found = [example for text in texts for example in examples(text) if example[0] != "report"]
    assert len(found) >= 10
    for example in found:
        with pytest.raises(_Reached):
            paring(*example)


def test_options_follow_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    paring("train", "--method", "dense", "--help")
    dense = capsys.readouterr().out
    paring("train", "--help")
    l0 = capsys.readouterr().out
    assert "--price RATE" in l0
    assert "--price RATE" not in dense
    assert "options below are those of --method dense" in dense
    assert "--epochs" in dense


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert paring("--version") == 0
    assert capsys.readouterr().out == f"paring {pr.__version__}\n"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (
            "squeeze",
            2,
            "there is no command 'squeeze'; choose one of demo, prune, sensitivity, train, sweep, tickets, report, pack, unpack, info, data",
        ),
        ("train --modle lenet5", 2, "Unrecognized options: --modle"),
        ("train --model alexnet", 2, "--model alexnet: there is no such network; choose one of lenet_300_100"),
        ("train --data imagenet", 2, "--data imagenet: there is no such data set; choose one of digits, mnist"),
        ("train --method magic", 2, "--method magic: there is no such method; choose one of at_init"),
        ("trian", 2, "there is no command 'trian'; did you mean 'train'? choose one of demo"),
        ("train --method rgl", 2, "--method rgl: there is no such method; did you mean 'rigl'? choose one of at_init"),
        ("train --model resnt20", 2, "there is no such network; did you mean 'resnet20'"),
        ("train --data cifar", 2, "there is no such data set; did you mean 'cifar10'"),
        ("train --gate hardconcrete", 2, "did you mean 'hard_concrete'"),
        ("train --gate hard_concrete:bta=1", 2, "did you mean 'beta'? hard_concrete has"),
        ("train --methd l0", 2, "Perhaps you meant: --method"),
        ("train --method=magic", 2, "--method magic: there is no such method"),
        ("train --method dense --price 1", 2, "Unrecognized options: --price"),
        ("train --price cheap", 2, "price 'cheap': not a number that is at least 0; examples: 1e-6"),
        ("train --price -1", 2, "price '-1': not a number that is at least 0"),
        ("train --price budget:macs=2", 2, "Budget(macs=2.0): a fraction of the dense network, in (0, 1]"),
        ("train --gate soft", 2, "gate 'soft': choose one of hard_concrete"),
        ("train --keep 1.5", 2, "L0(keep=1.5): a probability, in (0, 1)"),
        ("train --hold 1", 2, "Hold(last=1.0): a fraction of training, in [0, 1)"),
        ("train --at outputs", 2, "'outputs' is none of units, inputs, weights"),
        ("train --epochs 0", 2, "epochs = 0: must be at least 1"),
        ("train --epochs many", 2, "--epochs: invalid literal for int() with base 10: 'many'"),
        ("train --lr 0", 2, "lr = 0.0: must be a positive number"),
        ("train --optimizer lion", 2, "--optimizer"),
        ("train --ema 1", 2, "ema = 1.0: must lie in [0, 1)"),
        ("train --schedule step", 2, "schedule 'step' needs milestones"),
        ("train --validation -5", 2, "--validation -5: a number of examples, at least 0"),
        ("train --threads -1", 2, "--threads -1: must be 0 (all) or a positive number"),
        ("train --validation 5000", 1, "cannot take 5000 of 1438 examples"),
        ("train --model lenet5", 1, "lenet5_caffe needs images of at least 16x16, not 8x8; try lenet_300_100"),
        ("train --at units:conv9", 1, "this Sequential has no layer 'conv9'; it has fc1, fc2, fc3"),
        ("train --at units:fc3", 1, "layer 'fc3' cannot be gated: network output"),
        ("report", 2, "a run's folder (runs/..., runs/demo). (required)"),
        ("report nowhere", 2, "nowhere holds no finished run (result.json is missing); name a run's folder"),
        ("data --fetch imagenet", 2, "--fetch imagenet: there is no such data set; choose from digits"),
        ("demo --seed -1 --out demo", 1, "seed = -1: must be at least 0"),
        ("demo --threads -2", 2, "--threads -2: must be 0 (all) or a positive number"),
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
    assert paring(*shlex.split(words)) == status
    shown = capsys.readouterr()
    assert why in flat(shown.err)
    assert "Traceback" not in shown.err
    assert not list(tmp_path.rglob("result.json"))


def test_without_its_extra_the_command_line_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert paring("data") == 1
    assert "the command line needs the extra 'cli': pip install 'paring[cli]'" in capsys.readouterr().err


# --- train and report -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of two epochs."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("runs")
    assert paring(*TRAIN, "--epochs", "2", "--runs", str(folder)) == 0
    torch.set_num_threads(threads)
    return folder


def only(folder: Path) -> Path:
    (run,) = (path for path in folder.iterdir() if path.is_dir())
    return run


def test_a_run_leaves_its_files(runs: Path) -> None:
    folder = only(runs)
    assert {path.name for path in folder.iterdir()} >= FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["epochs"] == 2
    assert config["method"]["price"] == {
        "type": "Budget",
        "params": 0.2,
        "macs": None,
        "latency": None,
        "bytes": None,
        "memory": None,
        "ascent": 50.0,
        "multiple_of": 1,
    }
    row = json.loads((folder / "result.json").read_text())
    assert folder.name == f"lenet_300_100-digits-l0-{row['run']}"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    page = (folder / "report.html").read_text()
    assert f"{row['parameters']:,}" in page
    assert "No layer table" not in page


def test_the_same_words_again_only_read(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only(runs)
    stamps = {
        name: (folder / name).stat().st_mtime_ns for name in ("checkpoint.pt", "result.json", "small.safetensors")
    }
    assert paring(*TRAIN, "--epochs", "2", "--runs", str(runs), "--json") == 0
    shown = capsys.readouterr()
    assert f"this run is finished already and only read: {folder}" in shown.err
    assert json.loads(shown.out) == json.loads((folder / "result.json").read_text())
    assert only(runs) == folder
    assert {name: (folder / name).stat().st_mtime_ns for name in stamps} == stamps


def test_other_words_are_another_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TRAIN, "--runs", str(tmp_path)]
    words.remove("--quiet")
    assert paring(*words, "--epochs", "1", "--seed", "1") == 0
    shown = capsys.readouterr()
    row = json.loads((only(tmp_path) / "result.json").read_text())
    assert row["seed"] == 1
    lines = shown.out.splitlines()
    assert lines[0] == "lenet_300_100 on digits, l0, 1 epochs"
    for what, before, after in (("parameters", "dense_parameters", "parameters"), ("MACs", "dense_macs", "macs")):
        (line,) = [line for line in lines if line.startswith(f"  {what} ")]
        assert line.split()[1:4] == [f"{row[before]:,}", "→", f"{row[after]:,}"]
    told = [line for line in lines if line.startswith("  units ")]
    gone = [f"{name} {two[0]} → {two[1]}" for name, two in row["widths"].items() if two[1] < two[0]]
    assert [line.split(maxsplit=1)[1] for line in told] == ([", ".join(gone)] if gone else [])
    assert f"  paring report {only(tmp_path)} " in shown.out
    assert row["widths"]["fc3"] == [10, 10]
    assert "lenet_300_100 l0 seed 1: epoch 1/1" in shown.err
    assert "finished already" not in shown.err
    assert f"written to {only(tmp_path)}" in shown.err
    assert only(tmp_path).name != only(runs).name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", True),
        ("--price 0", True),
        ("--price 1e-6", False),
        ("--price budget:params=0.5", False),
        ("--method dense", False),
    ],
)
def test_training_without_a_price_says_that_nothing_is_asked(
    words: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise _Reached

    monkeypatch.setattr("paring.cli.experiment.Experiment.run", reached)
    with pytest.raises(_Reached):
        paring("train", *words.split())
    assert ("without --price, open gates cost nothing" in capsys.readouterr().err) == said


def test_a_locked_run_is_left_alone(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / only(runs).name
    folder.mkdir()
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert paring(*TRAIN, "--epochs", "2", "--runs", str(tmp_path)) == 1
    assert f"paring train: another process is training in {folder}; wait for it, or stop it" in capsys.readouterr().err


def test_a_damaged_result_is_named(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / only(runs).name
    folder.mkdir()
    (folder / "result.json").write_text('{"run": ')
    assert paring(*TRAIN, "--epochs", "2", "--runs", str(tmp_path)) == 1
    shown = capsys.readouterr().err
    assert f"{folder / 'result.json'} is damaged" in shown
    assert "run it again in another folder" in shown
    assert (folder / "result.json").read_text() == '{"run": '


def test_interrupted_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TRAIN, "--epochs", "3", "--ema", "0.9", "--schedule", "cosine", "--runs"]
    step = pr.Run.after_step

    def stopped(self: pr.Run, opt: torch.optim.Optimizer) -> None:
        step(self, opt)
        if self.clock.step == 20:  # in the second of three epochs of 15 steps
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pr.Run, "after_step", stopped)
        assert paring(*words, str(tmp_path / "stopped")) == 130
    assert "interrupted; the same command goes on from the last checkpoint" in capsys.readouterr().err
    folder = only(tmp_path / "stopped")
    assert not (folder / "result.json").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    steps: list[int] = []

    def counted(self: pr.Run, opt: torch.optim.Optimizer) -> None:
        step(self, opt)
        steps.append(self.clock.step)

    with monkeypatch.context() as patch:
        patch.setattr(pr.Run, "after_step", counted)
        assert paring(*words, str(tmp_path / "stopped")) == 0
    assert steps == list(range(16, 46)), "from the last checkpoint, not from the start"
    assert paring(*words, str(tmp_path / "straight")) == 0
    straight, times = only(tmp_path / "straight"), ("seconds", "cpu_seconds")
    assert straight.name == folder.name
    assert without(folder / "result.json", *TIMES) == without(straight / "result.json", *TIMES)
    assert without(folder / "metrics.jsonl", *times) == without(straight / "metrics.jsonl", *times)
    assert (folder / "small.safetensors").read_bytes() == (straight / "small.safetensors").read_bytes()


def without(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The objects in a file, without some keys."""
    text = path.read_text()
    rows = [json.loads(text)] if path.suffix == ".json" else list(map(json.loads, text.splitlines()))
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def test_report_prints_the_layer_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only(runs)
    row = json.loads((folder / "result.json").read_text())
    (folder / "report.html").unlink()
    assert paring("report", str(folder), "--no-html") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (folder / "report.html").exists()
    assert lines[0] == "lenet_300_100 on digits"
    assert lines[1].split() == ["layer", "kind", "units", "weight", "parameters", "nonzeros", "MACs", "bytes"]
    assert [line.split()[0] for line in lines[3:6]] == ["fc1", "fc2", "fc3"]
    sizes = [f"{row[key]:,}" for key in ("parameters", "nonzeros", "macs")]
    assert lines[-1].split()[:4] == ["total", *sizes]
    assert paring("report", "--run", str(folder)) == 0
    assert (folder / "report.html").exists()


def test_report_of_a_network_that_reads_some_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--at", "inputs", "--epochs", "1", "--runs", str(tmp_path)]
    assert paring(*TRAIN, *words, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    kept = int(row["architecture"].split("-")[0])
    assert kept < 64
    assert paring("report", str(only(tmp_path))) == 0
    assert f"x{kept} " in capsys.readouterr().out


# --- data -----------------------------------------------------------------------------------------------------------


def test_data_lists_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert paring("data") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100"}
    assert next(line for line in lines if line.startswith("digits")).split()[2] == "ok"


def test_data_fetches_what_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("paring.data.fetch", fetched.append)
    assert paring("data", "--fetch", "mnist", "fashion-mnist") == 0
    assert fetched == ["mnist", "fashion_mnist"]


def test_a_run_can_shrink_while_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shrinking = ("--epochs", "4", "--hold", "0.5", "--shrink", "10", "--runs", str(tmp_path))
    assert paring(*TRAIN, *shrinking) == 0
    folder = only(tmp_path)
    assert folder.name.startswith("lenet_300_100-digits-l0+shrink-")
    row = json.loads((folder / "result.json").read_text())
    assert row["method"] == "l0+shrink"
    assert row["parameters"] < 0.21 * row["dense_parameters"]
    capsys.readouterr()
    assert paring("train", "--method", "dense", "--shrink", "1ep", "--runs", str(tmp_path)) == 2
    assert "dense training closes nothing" in flat(capsys.readouterr().err)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of a POSIX shell")
def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`paring train --help | head -1`: the first line, and nothing on stderr."""
    command = [sys.executable, "-m", "paring.cli.main", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 1
