"""`paring sweep`: the grid that the words mean, refusals before anything runs, the table, and what failed."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from paring.cli.config import plain
from paring.cli.experiment import Experiment
from paring.cli.main import main
from paring.cli.results import Results, load
from paring.cli.sweep import Processes, Ray, Serial, Swept, sweep
from paring.cli.sweep.rows import as_csv, flat, short, varying
from paring.cli.sweep.sweep_page import sweep_page
from paring.cli.sweep.sweep_progress import Progress, left
from paring.cli.train_options import read_training
from paring.core import Stack
from paring.methods import GMP, L0, Dense, Price, RigL, Shrink
from paring.train import Recipe

GRID = "--method gmp --vary density=0.5,0.2 seed=0,1 --epochs 1 --batch 200 --executor serial --threads 1 --quiet"


def paring(words: str, *more: str) -> int:
    """Exit status of the command."""
    try:
        return main([*shlex.split(words), *more])
    except SystemExit as stop:
        return int(str(stop.code))


def flatten(text: str) -> str:
    """Text without boxes and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the command hands to `sweep`, filled when it does."""
    seen: dict[str, Any] = {}

    def keep(grid: list[Experiment], **options: Any) -> Swept:
        seen.update(options, grid=grid)
        return Swept(Results("x", "y"), ())

    monkeypatch.setattr("paring.cli.sweep.sweep_command.sweep", keep)
    monkeypatch.setattr("paring.data.fetch", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return seen


# --- the grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "points"),
    [
        (
            "--method gmp --vary density=0.5,0.2 seed=0,1 --epochs 3",
            ["--density 0.5 --seed 0", "--density 0.5 --seed 1", "--density 0.2 --seed 0", "--density 0.2 --seed 1"],
        ),
        (
            "--method gmp --vary 'ramp=0 0.5,0.1 0.75' recover=true,false",
            [
                "--ramp 0 0.5 --recover",
                "--ramp 0 0.5 --no-recover",
                "--ramp 0.1 0.75 --recover",
                "--ramp 0.1 0.75 --no-recover",
            ],
        ),
        (
            "--vary 'price=budget:macs=0.5;budget:macs=0.2,params=0.3'",
            ["--price budget:macs=0.5", "--price budget:macs=0.2,params=0.3"],
        ),
        ("--vary method=gmp,rigl density=0.1", ["--method gmp --density 0.1", "--method rigl --density 0.1"]),
        ("--method rigl --vary rigl-seed=0,7", ["--rigl-seed 0", "--rigl-seed 7"]),
        ("--schedule step --vary milestones='3 5;2'", ["--milestones 3 5", "--milestones 2"]),
        (
            "--price budget:params=0.3 --hold 0.5 --vary shrink=1ep,20 data=digits,fashion-mnist",
            [
                "--shrink 1ep --data digits",
                "--shrink 1ep --data fashion-mnist",
                "--shrink 20 --data digits",
                "--shrink 20 --data fashion-mnist",
            ],
        ),
        ("--method dense --vary model=lenet_300_100,lenet5 --lr 0.01", ["--model lenet_300_100", "--model lenet5"]),
        ("--method dense", [""]),
    ],
)
def test_every_trial_is_what_train_would_do(
    words: str, points: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = caught(monkeypatch, tmp_path)
    assert paring(f"sweep {words}") == 0
    base = re.sub(r"--vary( '[^']*'| [^-' ]\S*)+", "", words)
    expected = [read_training(shlex.split(f"{base} {point}"), prog="", description="")[1] for point in points]
    assert [one.key for one in seen["grid"]] == [one.key for one in expected]
    assert len({one.key for one in expected}) == len(points)


def test_a_methods_option_of_another_ones_name_has_the_methods_name_in_front() -> None:
    words = shlex.split("--method rigl --rigl-seed 3 --seed 4 --density 0.2")
    experiment = read_training(words, prog="", description="")[1]
    assert experiment.method == RigL(density=0.2, seed=3)
    assert experiment.recipe == Recipe(seed=4)


def test_options_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = caught(monkeypatch, tmp_path)
    assert paring("sweep --method dense --vary seed=0,1 --name s --results r --runs q --workers 3 --retries 0") == 0
    assert seen["executor"] == Processes(3, retries=0)
    assert (seen["path"], seen["runs"], seen["progress"]) == (Path("r/s.json"), Path("q"), True)
    assert seen["command"].startswith("paring sweep --method dense --vary seed=0,1 --name s")
    assert "written to r/s.json" in capsys.readouterr().out
    assert paring("sweep --method dense --executor serial --quiet") == 0
    assert seen["executor"] == Serial()
    assert re.fullmatch(r"runs/sweeps/lenet_300_100-digits-dense-[0-9a-f]{12}\.json", str(seen["path"]))
    assert not seen["progress"]
    assert paring("sweep --executor ray --address auto --gpus 0.5 --device cuda") == 0
    assert seen["executor"] == Ray(2, address="auto", gpus=0.5), "a cluster may have a GPU that is not here"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--vary density=0.1", "--vary density=...: --method l0 has no such option; there are accumulate, at, batch,"),
        ("--vary runs=a,b", "--vary runs=...: --method l0 has no such option"),
        ("--vary workers=1,2", "--vary workers=...: --method l0 has no such option"),
        ("--vary seed", "--vary seed: write NAME=V1,V2,..."),
        ("--vary seed=0,,1", "--vary seed=0,,1: a value is empty"),
        ("--vary seed=0,0", "--vary seed=0,0: a value stands there twice"),
        ("--vary seed=0 seed=1", "--vary: an option stands there twice"),
        ("--vary seed=0,1 --seed 2", "--vary seed=...: --seed is given as well; give one of the two"),
        ("--vary gate-lr=1,2 --gate_lr=2", "--vary gate_lr=...: --gate_lr is given as well"),
        ("--vary flip=true --no-flip", "--vary flip=...: --no-flip is given as well"),
        ("--vary flip=yes", "--vary flip=yes: true or false"),
        ('--vary "at=\'units"', "No closing quotation"),
        ("--vary seed=0,one", "invalid literal for int() with base 10: 'one'"),
        ("--vary lr=0.1,0", "lr = 0.0: must be a positive number"),
        ("--vary price=1e-6,cheap", "price 'cheap': not a number"),
        ("--vary method=gmp,magic", "--method magic: there is no such method"),
        ("--method rigl --vary density=0.1,2", "RigL(density=2.0): must lie in (0, 1]"),
        ("--vary model=lenet5,alexnet", "--model alexnet: there is no such network"),
        ("--vary data=digits,imagenet", "--data imagenet: there is no such data set"),
        ("--vary device=cpu,quantum", "--device quantum: not available here"),
        ("--method dense --vary shrink=1ep", "dense training closes nothing"),
        ("--executor slurm", "--executor"),
        ("--executor ray --workers 0", "Ray(workers=0): a whole number, at least 1"),
        ("--workers 0", "Processes(workers=0): a whole number, at least 1"),
        ("--retries -1", "(retries=-1): a whole number, at least 0"),
        ("--address auto", "--address auto: only for --executor ray, not processes"),
        ("--executor serial --gpus 1", "--gpus 1.0: only for --executor ray, not serial"),
        ("--name a/b", "--name a/b: a file name without folders"),
        ("--threads -1", "--threads -1: must be 0 (all) or a positive number"),
        ("--threads 4", "--threads 4: only for --executor serial; elsewhere each trial has one thread"),
        ("--vari seed=1", "Unrecognized options: --vari"),
    ],
)
def test_refused_before_anything_runs(
    words: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert paring(f"sweep {words}") == 2
    shown = capsys.readouterr()
    assert why in flatten(shown.err)
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


# --- the table ------------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_one_table_in_three_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--name", "densities")
    assert paring(f"sweep {GRID}", *where) == 0
    table = load(tmp_path / "densities.json")
    assert table.command.startswith("paring sweep --method gmp --vary density=0.5,0.2")
    told = [(row["config"]["method"]["density"], row["seed"], row["method"]) for row in table.rows]
    assert told == [(0.5, 0, "gmp"), (0.5, 1, "gmp"), (0.2, 0, "gmp"), (0.2, 1, "gmp")]
    assert all(
        row["weight_density"] == pytest.approx(row["config"]["method"]["density"], abs=1e-3) for row in table.rows
    )
    with open(tmp_path / "densities.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method.density"], line["recipe.seed"]) for line in lines] == [
        ("0.5", "0"), ("0.5", "1"), ("0.2", "0"), ("0.2", "1"),
    ]  # fmt: skip
    assert [float(line["error"]) for line in lines] == [row["error"] for row in table.rows]
    page = (tmp_path / "densities.html").read_text()
    assert "<h2>Over seeds</h2>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert all(row["run"] in page for row in table.rows)

    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError(f"{self.name} was run again")

    monkeypatch.setattr(Experiment, "run", run)
    assert paring(f"sweep {GRID}", *where) == 0
    assert load(tmp_path / "densities.json").rows == table.rows
    capsys.readouterr()
    other = GRID.replace("0.5,0.2", "0.2").replace(" --quiet", "")
    assert paring(f"sweep {other}", *where[:4], "--name", "few") == 0, "another table, the same runs"
    assert "few: 2 of 2 trials are there, 0 to do" in capsys.readouterr().err
    for path in (tmp_path / "runs").glob("*/result.json"):
        path.unlink()
    assert paring(f"sweep {GRID}", *where) == 0, "what the table holds is not run again, its run folder gone or not"


def test_failed_trials_are_listed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = GRID.replace(" --quiet", "")
    where = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--name", "grid")
    calls: list[int] = []

    def run(self: Experiment, root: Path, **_: Any) -> dict[str, Any]:
        calls.append(self.recipe.seed)
        if self.recipe.seed == 1:
            raise RuntimeError("the <loss> is nan")
        return {"run": self.key, "source": "measured", "seed": self.recipe.seed, "error": 1.0, "parameters": 7}

    monkeypatch.setattr(Experiment, "run", run)
    assert paring(f"sweep {words}", *where) == 1
    shown = capsys.readouterr()
    assert calls == [0, 1, 0, 1, 1, 1], "the others go on; a failed one is tried again"
    assert len(load(tmp_path / "grid.json").rows) == 2
    assert shown.err.count("failed after 2 attempts: lenet_300_100-digits-gmp-") == 2
    assert "2 trials failed; the same command tries them again" in shown.err
    assert "grid: 2 of 4 done, 2 failed, 0 running" in shown.err
    assert "density 0.2, seed 0: error 1.00 %, 7 parameters" in shown.err
    assert "density 0.2, seed 1: failed, tried 2 times: RuntimeError: the <loss> is nan" in shown.err
    errors = list(tmp_path.glob("runs/*/error.txt"))
    assert len(errors) == 2
    assert all(str(path) in shown.err for path in errors)
    assert "RuntimeError: the <loss> is nan\nafter 2 attempts\n\nTraceback" in errors[0].read_text()
    page = (tmp_path / "grid.html").read_text()
    assert "the &lt;loss&gt; is nan" in page
    assert str(errors[0].parent) in page
    monkeypatch.setattr(Experiment, "run", lambda self, root, **_: {"run": self.key, "source": "measured"})
    assert paring(f"sweep {words}", *where) == 0
    assert not list(tmp_path.glob("runs/*/error.txt"))
    assert len(load(tmp_path / "grid.json").rows) == 4
    assert "Failed" not in (tmp_path / "grid.html").read_text()


def test_the_table_is_in_the_order_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment, root: Path, **_: Any) -> dict[str, Any]:
        calls.append(self.recipe.seed)
        if len(calls) == 1:
            raise RuntimeError("try again")
        return {"run": self.key, "source": "measured", "seed": self.recipe.seed}

    calls: list[int] = []
    monkeypatch.setattr(Experiment, "run", run)
    grid = [Experiment("lenet_300_100", "digits", recipe=Recipe(seed=seed)) for seed in (0, 1, 2)]
    sweep(grid[1:], runs=tmp_path, path=tmp_path / "s.json", progress=False)
    assert calls == [1, 2, 1], "the second one ended first"
    for name, order in (("s", ["1", "2"]), ("t", ["0", "1", "2"])):
        sweep(grid if name == "t" else grid[1:], runs=tmp_path, path=tmp_path / f"{name}.json", progress=False)
        with open(tmp_path / f"{name}.csv", newline="") as file:
            assert [line["recipe.seed"] for line in csv.DictReader(file)] == order


def test_an_interrupted_sweep_leaves_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Experiment, root: Path, **_: Any) -> dict[str, Any]:
        if self.recipe.seed == 1:
            raise KeyboardInterrupt
        return {"run": self.key, "source": "measured", "error": 1.0}

    monkeypatch.setattr(Experiment, "run", run)
    where = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--name", "grid")
    assert paring(f"sweep {GRID}", *where) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert len(load(tmp_path / "grid.json").rows) == 1
    assert len((tmp_path / "grid.csv").read_text().splitlines()) == 2


def test_damaged_files_are_named(tmp_path: Path) -> None:
    experiment = Experiment("lenet_300_100", "digits", Dense(), Recipe(epochs=1))
    folder = tmp_path / experiment.name
    folder.mkdir()
    (folder / "result.json").write_text("{")
    swept = sweep([experiment], runs=tmp_path, path=tmp_path / "s.json", progress=False)
    assert "result.json is damaged" in swept.failures[0].reason
    assert (folder / "result.json").read_text() == "{", "nothing is lost"
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match=r"t\.json is damaged"):
        sweep([experiment], runs=tmp_path, path=tmp_path / "t.json", progress=False)
    with pytest.raises(ValueError, match="at least one experiment"):
        sweep([], path=tmp_path / "u.json")
    with pytest.raises(ValueError, match=r"must end in \.json"):
        sweep([experiment], path=tmp_path / "u.csv")


def test_settings_are_told_apart_by_their_names() -> None:
    method = Stack(L0(price=Price(1e-6, layers=(("conv1", 1e-4),))), Shrink())
    found = flat(plain(Experiment("lenet5_caffe", "mnist", method, Recipe(milestones=(3, 5)))))
    assert found["method"] == "Stack"
    assert found["method.methods.0"] == "L0"
    assert found["method.methods.0.price.rate"] == 1e-6
    assert found["method.methods.0.price.layers.0"] == "conv1 0.0001"
    assert found["method.methods.1.every"] == "1ep"
    assert found["recipe.milestones"] == "3 5"
    assert found["model"] == "lenet5_caffe"
    rows = [flat(plain(Experiment("m", "d", GMP(density=d), Recipe(seed=s)))) for d, s in ((0.1, 0), (0.2, 0))]
    assert varying(rows) == ["method.density"]
    assert varying([*rows, flat(plain(Experiment("m", "d", Dense())))])[:2] == ["method", "method.density"]
    assert varying([]) == []
    assert short(["recipe.lr", "method.rate", "finetune.rate"]) == {
        "recipe.lr": "lr", "method.rate": "method.rate", "finetune.rate": "finetune.rate",
    }  # fmt: skip
    assert as_csv([]) == "run\n"


def test_a_page_without_rows_and_with_strange_text() -> None:
    page = sweep_page(Results("none", "paring <sweep>"), [("<a>", "b & c", 2, "/tmp/<d>")])
    assert "&lt;a&gt;" in page
    assert "b &amp; c" in page
    assert "<sweep>" not in page


def test_time_left() -> None:
    assert left([], 10, 0, 2) is None
    assert left([10.0, 20.0], total=10, ended=2, workers=2) == 15 * (8 - 1) / 2
    assert left([10.0], total=4, ended=4, workers=2) == 0
    bar = Progress("s", total=5, done=1, workers=2, show=False)
    bar.ended("", 30.0, False)
    bar.ended("", 30.0, True)
    assert bar.state() == "2 of 5 done, 1 failed, 2 running, about 15.0 s left"


def test_configs_are_in_the_table(tmp_path: Path) -> None:
    experiment = Experiment("lenet_300_100", "digits", Dense(), Recipe(epochs=1, batch=400))
    swept = sweep([experiment, experiment], runs=tmp_path, path=tmp_path / "s.json", progress=False)
    (row,) = swept.results.rows
    assert row["config"] == json.loads((tmp_path / experiment.name / "config.json").read_text())
    assert {key: row[key] for key in row if key != "config"} == experiment.result(tmp_path)
