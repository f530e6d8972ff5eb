"""`python -m evidence`: help that teaches, refusals that say why, tables and benches written where they were asked for."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evidence.__main__ import COMMANDS, main
from evidence.bench import BENCHES
from paring.cli.results import load
from tests.cli.command_words import flat


def evidence(*words: str) -> int:
    """Exit status of the command."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(str(stop.code))


def examples(text: str) -> list[list[str]]:
    """The words of every example in a help text."""
    return [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("  python -m evidence ")]


def test_overview_lists_commands_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence() == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", shown, re.MULTILINE)
    assert {example[0] for example in examples(shown)} == set(COMMANDS)


class _Reached(BaseException):
    """The command got as far as its work."""


def test_every_example_of_every_help_is_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise _Reached

    for target in (
        "paring.cli.experiment.Experiment.run",
        "evidence.tables.table.run_table",
        "evidence.docs.regenerate",
    ):
        monkeypatch.setattr(target, reached)
    monkeypatch.setattr("evidence.bench.BENCHES", {name: replace(b, run=reached) for name, b in BENCHES.items()})
    monkeypatch.chdir(tmp_path)
    found = []
    for words in ([], *([name, "--help"] for name in COMMANDS)):
        assert evidence(*words) == 0
        shown, problems = capsys.readouterr()
        assert problems == ""
        assert "dataclass" not in shown.lower()
        found += examples(shown)
    assert len(found) >= 10
    for example in found:
        with pytest.raises(_Reached):
            evidence(*example)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("tables", "there is no command 'tables'; did you mean 'table'? choose one of table, bench, docs"),
        ("table", "Missing from python -m evidence table: NAME"),
        ("table nips2017", "there is no table 'nips2017'; choose one of louizos2018-mnist"),
        ("table louizos2018-mnist --seeds -1", "--seeds -1: must be at least 0"),
        ("table louizos2018-mnist --epochs -1", "--epochs -1: must be at least 0"),
        ("table louizos2018-mnist --jobs 0", "--jobs 0: must be at least 1"),
        ("bench speed", "there is no benchmark 'speed'; choose one of gates"),
        ("bench gates --repeats -1", "--repeats -1: must be 0"),
        ("bench removal --epochs 2", "--epochs 2: 'removal' does not train"),
        ("bench training-speed --seeds -1", "--seeds -1: must be at least 0"),
        ("bench training-speed --repeats 5", "--repeats 5: 'training-speed' trains, and repeats by --seeds"),
    ],
)
def test_refused_with_the_reason(
    words: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evidence(*shlex.split(words)) == 2
    shown = capsys.readouterr()
    assert why in flat(shown.err)
    assert "Traceback" not in shown.err
    assert not list(tmp_path.rglob("*.json"))


def test_a_table_is_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert evidence("table", "louizos2018-figures", *words) == 0
    path = tmp_path / "results" / "louizos2018-figures.json"
    assert capsys.readouterr().out == f"written to {path}\n"
    assert load(path).command == "python -m evidence table louizos2018-figures --seeds 3"


def test_options_of_a_table_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "evidence.tables.table.run_table", lambda table, **options: seen.update(options, table=table.name)
    )
    words = "louizos2018-mnist --epochs 2 --examples 50 --only dense --jobs 2 --quiet --results r --runs s"
    assert evidence("table", *words.split()) == 0
    assert seen == {
        "table": "louizos2018-mnist",
        "seeds": 3,
        "runs": Path("s"),
        "results": Path("r"),
        "command": "python -m evidence table louizos2018-mnist --seeds 3",
        "epochs": 2,
        "examples": 50,
        "only": "dense",
        "jobs": 2,
        "executor": None,
        "progress": False,
    }
