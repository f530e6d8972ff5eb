"""Tables: resumable, filtered, shortened, in several processes, and quoted as the paper prints them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evidence.tables import COMPUTED, TABLES
from evidence.tables.hard import units_of
from evidence.tables.louizos2018 import MNIST, N
from evidence.tables.table import Entry, Table, run_table, shortened
from marks import CUT_SHORT
from paring.cli import demo
from paring.cli.experiment import Busy, Experiment
from paring.cli.results import Results, load
from paring.cli.sweep import Serial, trials
from paring.core import Places
from paring.methods import L0, Budget, Dense, Price
from paring.train import Recipe

pytestmark = CUT_SHORT

TIMES = ("train_seconds", "train_cpu_seconds", "finish_seconds", "threads")
QUOTED = {"model": "lenet_300_100", "data": "digits", "method": "paper", "architecture": "1-2-3", "error": 1.5}


def entries(seed: int) -> list[Entry]:
    recipe = Recipe(epochs=1, batch=200, lr=2e-3, seed=seed)
    return [
        Entry("dense", Experiment("lenet_300_100", "digits", Dense(), recipe)),
        Entry("L0", Experiment("lenet_300_100", "digits", L0(price=Budget(params=0.2)), recipe)),
    ]


TABLE = Table("digits-check", "a check", entries, (QUOTED,), seeds=2)


def make(folder: Path, table: Table = TABLE, **options: Any) -> Results:
    settings: dict[str, Any] = {"seeds": 2, "command": "python -m evidence table digits-check", "progress": False}
    return run_table(table, runs=folder / "runs", results=folder / "results", **settings | options)


def measured(found: Results) -> list[dict[str, Any]]:
    return [row for row in found.rows if row["source"] == "measured"]


def timeless(found: Results) -> list[dict[str, Any]]:
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in found.rows]
    return sorted(rows, key=lambda row: str(row["run"]))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError(f"{self.name} was run again")

    monkeypatch.setattr(Experiment, "run", run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("table")
    found = make(folder)
    torch.set_num_threads(threads)
    return folder, found


def test_one_row_per_run_and_quotation_in_a_valid_file(made: tuple[Path, Results]) -> None:
    folder, found = made
    assert load(folder / "results" / "digits-check.json") == found
    assert found.command == "python -m evidence table digits-check"
    assert [(row["method"], row["seed"]) for row in measured(found)] == [
        ("dense", 0),
        ("L0", 0),
        ("dense", 1),
        ("L0", 1),
    ]
    assert [row["run"] for row in measured(found)] == [e.experiment.key for s in (0, 1) for e in entries(s)]
    quoted = [row for row in found.rows if row["source"] == "quoted"]
    assert quoted == [{"run": "quoted/lenet_300_100/paper", "source": "quoted", **QUOTED}]
    for entry, row in zip(entries(0) + entries(1), measured(found), strict=True):
        assert row == entry.experiment.run(folder / "runs") | {"method": entry.label}


def test_what_is_there_is_not_run_again(made: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = made
    forbid(monkeypatch)
    assert make(folder).rows == found.rows
    fewer = make(folder, seeds=1, command="python -m evidence table digits-check --seeds 1")
    assert fewer.rows == found.rows, "rows of other seeds stay"
    assert load(folder / "results" / "digits-check.json").command == "python -m evidence table digits-check --seeds 1"
    with pytest.raises(AssertionError, match="was run again"):
        make(folder, seeds=3)


def test_an_interrupted_table_goes_on(
    made: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = Experiment.run, []

    def stops(self: Experiment, root: Path, **options: Any) -> dict[str, Any]:
        calls.append(self.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, root, **options)

    monkeypatch.setattr(Experiment, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    kept = load(tmp_path / "results" / "digits-check.json")
    assert len(measured(kept)) == 2
    calls += ["the command is given again"]
    found = make(tmp_path, progress=True)
    assert timeless(found) == timeless(made[1])
    assert len(calls) == 3 + 1 + 2
    assert "digits-check: 2 of 4 runs are there, 2 to do" in capsys.readouterr().err


def test_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        ran.append(f"{'L0' if isinstance(self.method, L0) else 'dense'} {self.recipe.seed}")
        return {"run": self.key, "source": "measured", "seed": self.recipe.seed}

    monkeypatch.setattr(Experiment, "run", run)
    for only, wanted in (
        ("lenet_300_100 L0", ["L0 0", "L0 1"]),
        ("dense", ["dense 0", "dense 1"]),
        ("lenet5", []),
        ("", ["dense 0", "L0 0", "dense 1", "L0 1"]),
    ):
        ran.clear()
        folder = tmp_path / (only or "all")
        assert [f"{row['method']} {row['seed']}" for row in measured(make(folder, only=only))] == wanted
        assert ran == wanted
        assert (folder / "results" / "digits-check.json").exists()


def test_shortened_runs_are_other_runs_and_say_so() -> None:
    for entry in (*entries(0), *MNIST.entries(0)):
        assert shortened(entry, None) is entry
        short = shortened(entry, 3)
        assert short.label == f"{entry.label} (3 epochs)"
        assert short.experiment.recipe.epochs == 3
        assert short.experiment.key != entry.experiment.key
        assert short.experiment == replace(entry.experiment, recipe=short.experiment.recipe)
        few = shortened(entry, None, 1000)
        assert few.label == f"{entry.label} (1,000 examples)"
        assert few.experiment == replace(entry.experiment, examples=1000)
        assert shortened(entry, 3, 1000).label == f"{entry.label} (3 epochs, 1,000 examples)"
    recipe = Recipe(epochs=50, warmup=5.0)
    tuned = shortened(Entry("x", replace(entries(0)[0].experiment, recipe=recipe, finetune=recipe)), 1).experiment
    assert tuned.recipe == Recipe(epochs=1)
    assert tuned.finetune == Recipe(epochs=1)


def test_shortened_rows_stand_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        return {"run": self.key, "source": "measured", "seed": 0, "epochs": self.recipe.epochs}

    monkeypatch.setattr(Experiment, "run", run)
    make(tmp_path, seeds=1)
    found = make(tmp_path, seeds=1, epochs=2)
    assert [(row["method"], row["epochs"]) for row in measured(found)] == [
        ("dense", 1),
        ("L0", 1),
        ("dense (2 epochs)", 2),
        ("L0 (2 epochs)", 2),
    ]


def test_rows_are_in_the_tables_order_whatever_came_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Experiment, "run", lambda self, *_, **__: {"run": self.key, "source": "measured", "seed": self.recipe.seed}
    )
    make(tmp_path, only="L0")
    make(tmp_path, seeds=1, epochs=2)
    found = make(tmp_path)
    assert [(row["method"], row.get("seed")) for row in found.rows] == [
        ("paper", None),
        *(("dense", 0), ("L0", 0), ("dense", 1), ("L0", 1)),
        *(("dense (2 epochs)", 0), ("L0 (2 epochs)", 0)),
    ]
    assert load(tmp_path / "results" / "digits-check.json").rows == found.rows


def test_rows_that_the_table_no_longer_has_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        Experiment, "run", lambda self, *_, **__: {"run": self.key, "source": "measured", "seed": self.recipe.seed}
    )
    path = tmp_path / "results" / "digits-check.json"
    before = make(tmp_path)
    make(tmp_path, seeds=1, epochs=2)
    replace(load(path), date="2020-01-01").save(path)

    def other(seed: int) -> list[Entry]:
        dense, gates = entries(seed)
        return [dense, Entry("L0", replace(gates.experiment, method=L0(price=Budget(params=0.2), keep=0.9)))]

    def after(given: Results) -> Results:
        return replace(given, rows=[{**row, "judged": True} for row in given.rows])

    capsys.readouterr()
    found = make(tmp_path, replace(TABLE, entries=other, after=after), only="dense")
    kept = [(row["method"], row["seed"]) for row in measured(found)]
    assert kept == [("dense", 0), ("dense", 1), ("dense (2 epochs)", 0), ("L0 (2 epochs)", 0)], "checks stay"
    assert all(row["judged"] for row in found.rows)
    aside = load(path.with_name("digits-check.outdated.json"))
    assert [row["run"] for row in aside.rows] == [row["run"] for row in measured(before) if row["method"] == "L0"]
    assert {row["date"] for row in aside.rows} == {"2020-01-01"}, "when it was measured goes along"
    assert "2 rows are of settings that the table no longer has; they are now in" in capsys.readouterr().err


def test_rows_of_another_process_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        if isinstance(self.method, L0):  # meanwhile, somebody else finishes the other row
            make(tmp_path, seeds=1, only="dense")
        return {"run": self.key, "source": "measured", "seed": 0}

    monkeypatch.setattr(Experiment, "run", run)
    assert {row["method"] for row in measured(make(tmp_path, seeds=1, only="L0"))} == {"dense", "L0"}


@pytest.mark.slow
def test_runs_that_another_process_works_on_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []
    run = Experiment.run

    def busy(self: Experiment, root: Path, **options: Any) -> dict[str, Any]:
        tried.append(f"{self.label} {self.recipe.seed}")
        if tried.count("dense 0") < 3 and tried[-1] == "dense 0":
            raise Busy(f"another process is training in {root}")
        return run(self, root, **options)

    monkeypatch.setattr(Experiment, "run", busy)
    monkeypatch.setattr(trials, "_LOOK", 0.0)
    found = make(tmp_path, progress=True)
    assert tried == ["dense 0", "l0 0", "dense 1", "l0 1", "dense 0", "dense 0"]
    assert [(row["method"], row["seed"]) for row in measured(found)] == [
        *(("dense", 0), ("L0", 0), ("dense", 1), ("L0", 1)),
    ]
    assert "waiting for runs of other processes: 1" in capsys.readouterr().err


def test_two_processes_give_the_same_rows(made: tuple[Path, Results], tmp_path: Path) -> None:
    found = make(tmp_path, jobs=2, seeds=1)
    assert timeless(found) == [row for row in timeless(made[1]) if row.get("seed") != 1]
    assert {row["threads"] for row in measured(found)} == {1}
    assert load(tmp_path / "results" / "digits-check.json") == found


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Experiment, *_: Any, **__: Any) -> dict[str, Any]:
        if not isinstance(self.method, L0):
            raise ValueError("no good")
        return {"run": self.key, "source": "measured", "seed": self.recipe.seed}

    monkeypatch.setattr(Experiment, "run", run)
    with pytest.raises(RuntimeError, match=r"2 of 4 runs failed; the others are in the table:\n.*ValueError: no good"):
        make(tmp_path, executor=Serial(retries=0))
    found = load(tmp_path / "results" / "digits-check.json")
    assert [(row["method"], row["seed"]) for row in measured(found)] == [("L0", 0), ("L0", 1)]


# --- the paper's table ----------------------------------------------------------------------------------------------

# Louizos, Welling, Kingma 2018, Table 1: method, kept architecture, error in percent.
PRINTED = {
    ("lenet_300_100", "SparseVD", "512-114-72", 1.8),
    ("lenet_300_100", "BC-GNJ", "278-98-13", 1.8),
    ("lenet_300_100", "BC-GHS", "311-86-14", 1.8),
    ("lenet_300_100", "L0hc 0.1/N", "219-214-100", 1.4),
    ("lenet_300_100", "L0hc sep.", "266-88-33", 1.8),
    ("lenet5_caffe", "SparseVD", "14-19-242-131", 1.0),
    ("lenet5_caffe", "GL", "3-12-192-500", 1.0),
    ("lenet5_caffe", "GD", "7-13-208-16", 1.1),
    ("lenet5_caffe", "SBP", "3-18-284-283", 0.9),
    ("lenet5_caffe", "BC-GNJ", "8-13-88-13", 1.0),
    ("lenet5_caffe", "BC-GHS", "5-10-76-16", 1.0),
    ("lenet5_caffe", "L0hc 0.1/N", "20-25-45-462", 0.9),
    ("lenet5_caffe", "L0hc sep.", "9-18-65-25", 1.0),
}


def test_quoted_rows_are_the_papers_table_1() -> None:
    found = [(row["model"], row["method"], row["architecture"], row["error"]) for row in MNIST.quoted]
    assert len(found) == len(PRINTED)
    assert set(found) == PRINTED
    assert len({(model, method) for model, method, _, _ in found}) == len(found), "rows are named by these two"


@pytest.mark.parametrize("row", MNIST.quoted, ids=lambda row: f"{row['model']} {row['method']}")
def test_sizes_of_quoted_rows_are_those_of_a_network_built_so(row: dict[str, Any]) -> None:
    kept = [int(part) for part in row["architecture"].split("-")]
    if row["model"] == "lenet_300_100":
        a, b, c = kept
        layers: list[nn.Module] = [nn.Linear(a, b), nn.Linear(b, c), nn.Linear(c, 10)]
        macs = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    else:
        a, b, c, d = kept
        layers = [nn.Conv2d(1, a, 5), nn.Conv2d(a, b, 5), nn.Linear(c, d), nn.Linear(d, 10)]
        sizes = [layer.weight.numel() for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        macs = sum(size * places for size, places in zip(sizes, (24 * 24, 8 * 8, 1, 1), strict=True))
    assert row["parameters"] == sum(p.numel() for layer in layers for p in layer.parameters())
    assert row["macs"] == macs


@pytest.mark.parametrize("name", TABLES)
def test_entries_are_different_runs(name: str) -> None:
    table = TABLES[name]
    found = [entry for seed in range(3) for entry in table.entries(seed)]
    assert len({entry.experiment.key for entry in found}) == len(found)
    per_seed = [
        (e.experiment.model, e.experiment.data, units_of(e.experiment.method), e.label) for e in table.entries(0)
    ]
    assert len(set(per_seed)) == len(per_seed)
    assert {entry.experiment.recipe.seed for entry in table.entries(2)} == {2}
    assert table.name == name
    assert table.about


def test_the_papers_settings() -> None:
    papers = [entry for entry in MNIST.entries(0) if entry.label in ("dense", "L0 0.1/N", "L0 sep.")]
    assert len(papers) == 6
    for entry in papers:
        recipe = entry.experiment.recipe
        assert (recipe.epochs, recipe.batch, recipe.lr, recipe.ema) == (200, 100, 1e-3, 0.999)
        assert (recipe.optimizer, recipe.weight_decay, recipe.schedule) == ("adam", 0.0, "constant")
        assert entry.experiment.validation == 0
    methods = {(e.experiment.model, e.label): e.experiment.method for e in papers}
    mlp, conv = methods["lenet_300_100", "L0 0.1/N"], methods["lenet5_caffe", "L0 sep."]
    assert isinstance(mlp, L0)
    assert isinstance(conv, L0)
    assert mlp.price == Price(0.1 / 60_000)
    assert (mlp.at, mlp.keep) == (Places.of("inputs"), (("fc1", 0.8),))
    assert isinstance(conv.price, Price)
    assert [round(conv.price.at(layer) * N, 6) for layer in ("conv1", "conv2", "fc1", "fc2")] == [10, 0.5, 0.1, 10]
    assert conv.at == Places.of(("units:Conv2d", "inputs:Linear"))


# --- computed evidence ----------------------------------------------------------------------------------------------


def test_figures(tmp_path: Path) -> None:
    made = COMPUTED["louizos2018-figures"]
    made.run(tmp_path, tmp_path / "runs", 3, "python -m evidence table louizos2018-figures")
    first = (tmp_path / "louizos2018-figures.json").read_text()
    made.run(tmp_path, tmp_path / "runs", 3, "python -m evidence table louizos2018-figures")
    assert (tmp_path / "louizos2018-figures.json").read_text() == first
    curves = {(row["figure"], row["label"]): row for row in load(tmp_path / "louizos2018-figures.json").rows}
    assert {figure for figure, _ in curves} == {"1", "2a", "2b"}, "figure 3 needs runs"
    assert all(len(row["x"]) == len(row["y"]) for row in curves.values())
    half = curves["1", "p = 0.5"]
    assert half["y"][half["x"].index(1.0)] == 1.0
    assert set(curves["1", "p = 0"]["y"]) <= {0.0, 1.0}
    atoms = curves["2a", "hard concrete, atoms"]["y"]
    between = curves["2a", "hard concrete, on (0, 1)"]
    step = between["x"][1] - between["x"][0]
    assert atoms[0] == pytest.approx(atoms[1], abs=1e-6), "symmetric at log α = 0"
    assert sum(atoms) + step * sum(between["y"]) == pytest.approx(1, abs=0.01), "one distribution"
    middle = len(curves["2b", "P(z ≠ 0)"]["x"]) // 2
    assert [curves["2b", label]["y"][middle] for label in ("P(z ≠ 0)", "test-time gate", "mean of z")] == pytest.approx(
        [0.831818, 0.5, 0.5], abs=1e-5
    )


def test_figure_3_reads_finished_runs_only(tmp_path: Path) -> None:
    done, short = MNIST.entries(0)[:2]
    for entry, epochs in ((done, 200), (short, 199)):
        folder = tmp_path / "runs" / entry.experiment.name
        folder.mkdir(parents=True)
        lines = [json.dumps({"epoch": e + 1, "expected_flops": 10.0 * e}) for e in range(epochs)]
        (folder / "metrics.jsonl").write_text("\n".join([json.dumps({"note": "x"}), *lines]) + "\n")
    COMPUTED["louizos2018-figures"].run(tmp_path, tmp_path / "runs", 1, "python -m evidence table louizos2018-figures")
    rows = [row for row in load(tmp_path / "louizos2018-figures.json").rows if row["figure"] == "3"]
    assert [(row["model"], row["method"], row["x"][0], row["y"][-1]) for row in rows] == [
        ("lenet_300_100", "dense", 1.0, 1990.0)
    ]


def test_demo_seeds_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(out: Path, seed: int) -> dict[str, Any]:
        ran.append(seed)
        return {"seed": seed, "small": {"error": 1.0}}

    monkeypatch.setattr(demo, "run", run)
    made = COMPUTED["demo-seeds"]
    made.run(tmp_path, tmp_path / "runs", 2, "python -m evidence table demo-seeds --seeds 2")
    made.run(tmp_path, tmp_path / "runs", 3, "python -m evidence table demo-seeds --seeds 3")
    assert ran == [0, 1, 2]
    found = load(tmp_path / "demo-seeds.json")
    assert found.command == "python -m evidence table demo-seeds --seeds 3"
    assert [row["seed"] for row in found.rows] == [0, 1, 2]
    monkeypatch.setattr(demo, "RECIPE", replace(demo.RECIPE, epochs=1))
    made.run(tmp_path, tmp_path / "runs", 1, "python -m evidence table demo-seeds --seeds 1")
    assert ran == [0, 1, 2, 0], "another recipe is another run"
