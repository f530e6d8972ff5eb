"""Run folders, results and sweeps that anybody may have written: one clear line, soon, without much memory, nothing executed."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paring.cli.dispatch import BUG
from paring.cli.experiment import RESULT, SMALL, Experiment
from paring.cli.fuzz.result_format import DEMO, ROW
from paring.cli.fuzz.run_format import _METRICS, CONFIG
from paring.cli.main import main
from paring.core import ParingWarning
from paring.files import save
from paring.methods import Dense
from paring.models import build
from paring.testing.fuzz import campaign, made, sown
from paring.testing.fuzz.limits import measured
from paring.train import METRICS, Recipe

DEEP = '{"a":' * 100_000
MISSING = object()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a run leaves, of a network that nobody trained."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    save(build("lenet_300_100", shape=(1, 8, 8), classes=10), folder / SMALL)
    (folder / RESULT).write_text(json.dumps(ROW))
    (folder / CONFIG).write_text(json.dumps({"validation": 20}))
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in _METRICS))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which this command is refused, within a second and 300 MB."""
    capsys.readouterr()
    with measured() as taken:
        assert main([str(word) for word in words]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"paring {words[0]}: ")
    assert line.isprintable()
    for wrong in (BUG, "elete", "Traceback"):
        assert wrong not in line
    assert shown.out == ""
    assert taken.seconds < 1
    assert taken.memory < 300 << 20
    return line


def other(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (ROW | changes).items() if value is not MISSING})


RESULTS: dict[str, tuple[str, str]] = {
    "model is a list": (other(model=[1]), "'model' is [1]"),
    "model needs widths": (other(model="mlp"), "'model' is 'mlp'"),
    "model by path": (other(model="os:system"), "'model' is 'os:system'"),
    "parameters are text": (other(parameters="x"), "'parameters' is 'x'"),
    "parameters are infinite": (other(parameters=float("inf")), "Infinity is not a number"),
    "error is not a number": (other(error=float("nan")), "NaN is not a number"),
    "error beyond all": (other(error=0).replace('"error": 0', '"error": 1e999'), "'error' is inf"),
    "a count beyond all": (other(parameters=10**400), "'parameters' is 1000"),
    "classes": (other(classes=10_000_000), "'classes' is 10000000, but digits has [1, 8, 8] and 10"),
    "shape": (other(shape=[3, 100_000, 100_000]), "'shape' is [3, 100000, 100000]"),
    "shape is text": (other(shape="1"), "'shape' is '1'"),
    "no shape": (other(shape=MISSING), "'shape' is not there"),
    "no model": (other(model=MISSING), "'model' is not there"),
    "another data set": (other(data="\x1b[2Jimagenet"), r"'data' is '\x1b[2Jimagenet', none of digits"),
    "only a source": ('{"source": "measured"}', "'model' is not there"),
    "a list": ("[1]", "holds [1] where the result of a run should be"),
    "half": ('{"run": ', "is damaged, or another file"),
    "nothing": ("", "is damaged, or another file"),
    "deep": (DEEP, "is damaged, or another file"),
    "rather deep": (other(layers=json.loads("[" * 120 + "]" * 120)), "nested more than 100 deep"),
    "many": (f'{{"a": [{"[]," * 3_000_000}0]}}', "more than 1,048,576 values"),
    "twice": (other()[:-1] + ', "model": "vgg16"}', "the key 'model' is there twice"),
    "inside": (other(small={"parameters": "x"}), "in 'small' 'parameters' is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_none(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, why = RESULTS[name]
    (folder / RESULT).write_text(text)
    line = refused(capsys, "report", folder)
    assert str(folder / RESULT) in line
    assert why in line


LINES: dict[str, tuple[str, str]] = {
    "a number": ("5", "a row is an object, not 5"),
    "a list": ('["epoch"]', "a row is an object, not ['epoch']"),
    "half": ('{"epoch": 1, "lo', "no JSON that can be read"),
    "epoch is text": ('{"epoch": "x"}', "'epoch' is 'x'"),
    "loss is a list": ('{"epoch": 1, "loss": []}', "'loss' is []"),
    "loss is infinite": ('{"epoch": 1, "loss": Infinity}', "Infinity is not a number"),
    "units are text": ('{"epoch": 1, "units": {"fc1": "x"}}', "'units' is {'fc1': 'x'}"),
    "deep": (DEEP, "no JSON that can be read"),
    "another object": ("{}", "it has neither 'epoch' nor 'note'"),
}


@pytest.mark.parametrize("name", LINES)
def test_records_that_are_none(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, why = LINES[name]
    with open(folder / METRICS, "a") as file:
        file.write(text + "\n")
    line = refused(capsys, "report", folder)
    assert f"{folder / METRICS}, line {len(_METRICS) + 1}: " in line
    assert why in line


def test_half_a_last_line_is_left_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / METRICS, "a") as file:
        file.write('{"epoch": 4, "lo')
    with pytest.warns(ParingWarning, match=r"the last line of .*metrics.jsonl is cut short"):
        assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").exists()


def test_a_warning_is_one_line_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> tuple[()]:
        for kind in (ParingWarning, UserWarning):
            sys.stderr.write(warnings.formatwarning(kind("half \x1b done"), kind, "file.py", 3, ""))
        return ()

    before = warnings.formatwarning
    monkeypatch.setattr("paring.data.status", told)
    assert main(["data"]) == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == r"paring data: half \x1b done"
    assert second.startswith("file.py:3: UserWarning")
    assert warnings.formatwarning is before


@pytest.mark.parametrize("damage", ["empty", "half", "gone", "a folder"])
def test_networks_that_are_none(folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / SMALL
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(data[: 0 if damage == "empty" else len(data) // 2])
    assert str(path) in refused(capsys, "report", folder)


@pytest.mark.parametrize("text", ["[", "5", '{"validation": "x"}', '{"validation": -1}', '{"validation": 1e999}', DEEP])
def test_configs_that_are_none(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / CONFIG).write_text(text)
    assert str(folder / CONFIG) in refused(capsys, "pack", folder, "--out", folder / "x.pare", "--quiet")


@pytest.mark.parametrize("text", ['{"source": "measured"}', other(run="other"), other(model=[1]), "[", DEEP])
def test_training_over_what_is_no_result_of_it(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = Experiment("lenet_300_100", "digits", Dense(), Recipe(epochs=1)).name
    path = tmp_path / name / RESULT
    path.parent.mkdir()
    path.write_text(text)
    words = ("train", "--method", "dense", "--epochs", "1", "--threads", "1", "--quiet", "--runs", tmp_path)
    assert str(path) in refused(capsys, *words)
    assert path.read_text() == text


def test_training_over_a_result_whose_network_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Experiment("lenet_300_100", "digits", Dense(), Recipe(epochs=1))
    path = tmp_path / one.name / RESULT
    path.parent.mkdir()
    path.write_text(other(run=one.key))
    main(["train", "--method", "dense", "--epochs", "1", "--threads", "1", "--quiet", "--runs", str(tmp_path)])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("this run is finished already and only read")
    assert str(path.parent / SMALL) in second


def test_the_demos_folder_is_packed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / RESULT).write_text(json.dumps(DEMO))
    assert main(["pack", str(folder), "--out", str(folder / "demo.pare"), "--quiet"]) == 0
    assert "every number as it was" in capsys.readouterr().out
    assert (folder / "demo.pare").stat().st_size > 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["rows"][0].update(config=[1]),
        lambda table: table["rows"][0].update(train_seconds="x"),
        lambda table: table["rows"][0].update(parameters=0.5),
        lambda table: table["rows"].append(5),
        lambda table: table.update(rows={"a": 1}),
        lambda table: table.update(name="\x1b[2J"),
        lambda table: table.update(date=5),
    ],
)
def test_tables_that_are_none(
    tmp_path: Path, change: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = next(one for one in made("sweep").seeds() if one.name == "rows")
    table = json.loads(seed.files["grid.json"])
    change(table)
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(table))
    words = ("sweep", "--method", "dense", "--vary", "seed=0,1", "--epochs", "1", "--executor", "serial", "--quiet")
    line = refused(capsys, *words, "--name", "grid", "--results", tmp_path, "--runs", tmp_path / "runs")
    assert str(path) in line
    assert json.loads(path.read_text()) == table


@pytest.mark.parametrize(("name", "cases", "every"), [("result", 300, 7), ("run", 40, 183), ("sweep", 60, 129)])
def test_a_short_run_of_the_fuzzer(name: str, cases: int, every: int) -> None:
    """Changed files, and a planted module and function in one field after the other."""
    for counts in (campaign(made(name), cases=cases), sown(made(name), every=every)):
        assert counts.failing == []
        assert counts.outcomes["refused"] > counts.cases / 5


def test_a_fault_of_our_own_is_one_line_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("\x1b[31mx")

    monkeypatch.setattr("paring.data.status", broken)
    assert main(["data"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"paring data: {BUG}: KeyError: ")
    assert line.isprintable()
    monkeypatch.setenv("PARING_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["data"])
