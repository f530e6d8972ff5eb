"""Experiments: keys that name runs, locks, damaged results, and rows whose numbers agree with the saved network."""

from __future__ import annotations

import fcntl
import json
import re
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from marks import CUT_SHORT
from paring.cli.config import digest, plain
from paring.cli.experiment import RESULT, SMALL, Busy, Experiment
from paring.data import load as load_data
from paring.files import load
from paring.gates import relax
from paring.methods import IMP, L0, Budget, ContinuousSparsification, Dense, Hold, Price
from paring.models import build
from paring.testing import is_stock, same_state
from paring.train import CHECKPOINT, METRICS, Recipe

pytestmark = CUT_SHORT

KEYS = {
    "widths",
    *("run", "model", "data", "shape", "classes", "method", "seed", "epochs", "architecture", "source", "threads"),
    *("error", "train_error", "validation_error", "gated_error"),
    *("parameters", "macs", "adds", "nonzeros", "bytes", "density", "ratio", "dense_parameters", "dense_macs"),
    *("support_parameters", "support_macs", "expected_parameters", "expected_macs"),
    *("weight_density", "live_density", "mac_density", "layers", "rounds", "notes"),
    *("train_seconds", "train_cpu_seconds", "finish_seconds"),
}
TIMES = ("train_seconds", "train_cpu_seconds", "finish_seconds")
UNITS = Experiment(
    "lenet_300_100",
    "digits",
    L0(price=Budget(params=0.2), at="units"),
    Recipe(epochs=2, batch=100, lr=2e-3, ema=0.9, seed=1),
    validation=100,
)
INPUTS = replace(UNITS, method=L0(price=Budget(params=0.3), at="inputs"), validation=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=[UNITS, INPUTS], ids=["units", "inputs"])
def finished(request: pytest.FixtureRequest, root: Path) -> tuple[Experiment, Path, dict[str, Any]]:
    experiment: Experiment = request.param
    return experiment, root / experiment.name, experiment.run(root, progress=False)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_keys_are_the_same_in_every_process_and_release() -> None:
    """Written down once: a key that moves orphans the runs that were made under it."""
    assert Experiment("lenet_300_100", "digits").key == "51fef7dfdce2"
    assert UNITS.key == "b3cc69231f30"
    assert UNITS.name == "lenet_300_100-digits-l0-b3cc69231f30"


def test_equal_configs_have_equal_keys() -> None:
    separate = Price(1e-6, layers={"conv1": 1e-4})  # type: ignore[arg-type]
    pairs = [
        (UNITS, replace(UNITS)),
        (UNITS, replace(UNITS, method=L0(price=Budget(params=0.2), at="units"))),
        (
            replace(UNITS, method=L0(price=separate)),
            replace(UNITS, method=L0(price=Price(1e-6, layers=(("conv1", 1e-4),)))),
        ),
        (replace(UNITS, method=L0(price=0.5)), replace(UNITS, method=L0(price=Price(0.5)))),
    ]
    for a, b in pairs:
        assert a == b
        assert a.key == b.key


CHANGES: dict[type, tuple[Any, dict[str, Any]]] = {
    Experiment: (
        UNITS,
        {
            "model": "mlp",
            "data": "mnist",
            "method": Dense(),
            "recipe": Recipe(),
            "finetune": Recipe(),
            "validation": 99,
            "drop_inputs": True,
            "examples": 99,
            "norm_scales": "uniform",
        },
    ),
    Recipe: (
        UNITS.recipe,
        {
            "epochs": 3,
            "batch": 99,
            "lr": 2.1e-3,
            "optimizer": "sgd",
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 1e-9,
            "schedule": "cosine",
            "milestones": (1,),
            "gamma": 0.2,
            "warmup": 0.5,
            "ema": 0.91,
            "clip": 1.0,
            "accumulate": 2,
            "crop": 1,
            "flip": True,
            "seed": 2,
            "device": "cuda",
            "bf16": True,
            "compile": True,
            "conditional": 8,
            "channels_last": False,
        },
    ),
    L0: (
        UNITS.method,
        {
            "price": Budget(params=0.21),
            "at": "inputs",
            "keep": 0.6,
            "gate": relax.HardConcrete(beta=0.5),
            "gate_lr": 9.0,
            "l2": 1e-3,
            "detach_l2": True,
            "per_example": True,
            "hold": 0.25,
            "prior": 0.1,
            "kl": 1e-3,
            "start": "trained",
        },
    ),
    Hold: (Hold(0.5), {"last": 0.25, "rewind": 0, "drop": 0.3}),
}


@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_every_field_is_part_of_the_key(kind: type) -> None:
    value, changes = CHANGES[kind]
    assert set(changes) == {f.name for f in fields(kind)}, "a new field belongs into this test"
    found = {digest(value)}
    for name, other in changes.items():
        both = {"prior": 0.1} if name == "kl" else {}
        found.add(digest(replace(value, **{name: other}, **both)))
    assert len(found) == 1 + len(changes)


def test_relaxations_and_types_are_part_of_the_key() -> None:
    gates = (relax.HardConcrete(), relax.HardConcrete(test="median"), relax.Concrete(), relax.RectifiedGaussian())
    assert len({replace(UNITS, method=L0(gate=gate)).key for gate in gates}) == len(gates)
    assert digest(Price(0.0)) != digest(Dense())


def test_renamed_fields_keep_their_place_in_the_key() -> None:
    """Rows of results are found by keys that were made when the fields had other names."""
    assert digest(IMP(rewind="2ep", retrain="lr")) == "b263783c6f40"
    assert digest(ContinuousSparsification(rewind=3)) == "0b5e44fbbd4a"
    assert plain(IMP(rewind="2ep"))["rewind"] == "2ep"
    assert plain(IMP(rewind="2ep"), hashed=True) == {"type": "IMP", "to": "2ep"}


def test_fields_at_their_default_do_not_count() -> None:
    spelled_out = {f.name: getattr(Recipe(epochs=7), f.name) for f in fields(Recipe)}
    assert digest(Recipe(**spelled_out)) == digest(Recipe(epochs=7))
    assert replace(UNITS, finetune=None, drop_inputs=None).key == UNITS.key
    later = make_dataclass("Recipe", [("novelty", int, 0)], bases=(Recipe,), frozen=True)
    assert digest(later(epochs=7)) == digest(Recipe(epochs=7)), "an option added later keeps old keys"
    assert digest(later(epochs=7, novelty=1)) != digest(Recipe(epochs=7))


def test_json_form_shows_everything_and_refuses_what_is_no_config() -> None:
    shown = plain(UNITS)
    assert shown["type"] == "Experiment"
    assert shown["drop_inputs"] is None
    assert shown["method"]["gate"]["type"] == "HardConcrete"
    assert set(shown["recipe"]) == {"type", *(f.name for f in fields(Recipe))}
    assert json.loads(json.dumps(shown)) == shown

    @dataclass(frozen=True)
    class Odd:
        value: Any

    for value in (torch.zeros(2), object(), {1, 2}, Recipe):
        with pytest.raises(TypeError, match="cannot be part of a config"):
            plain(Odd(value))
    with pytest.raises(ValueError, match="Out of range float"):
        digest(Odd(float("nan")))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_network_comes_from_the_seed_and_leaves_the_random_state_alone() -> None:
    data = load_data("digits")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = UNITS.network(data)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert same_state(first.state_dict(), UNITS.network(data).state_dict())
    other = replace(UNITS, recipe=replace(UNITS.recipe, seed=2)).network(data)
    assert not same_state(first.state_dict(), other.state_dict())


def test_files_of_a_run(finished: tuple[Experiment, Path, dict[str, Any]]) -> None:
    experiment, folder, row = finished
    for name in ("config.json", METRICS, CHECKPOINT, RESULT, SMALL):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "config.json").read_text()) == plain(experiment)
    assert json.loads((folder / RESULT).read_text()) == row
    assert not list(folder.glob(".*.tmp"))
    epochs = [json.loads(line)["epoch"] for line in (folder / METRICS).read_text().splitlines()]
    assert epochs == [1, 2]


def test_row_agrees_with_the_saved_network(finished: tuple[Experiment, Path, dict[str, Any]]) -> None:
    experiment, folder, row = finished
    assert set(row) == KEYS
    assert (row["run"], row["seed"], row["epochs"]) == (experiment.key, 1, 2)
    assert (row["model"], row["data"], row["method"]) == ("lenet_300_100", "digits", "l0")
    assert row["source"] == "measured"
    net = load(lambda: build(row["model"], shape=tuple(row["shape"]), classes=row["classes"]), folder / SMALL).eval()
    assert is_stock(net)
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert row["parameters"] == sum(p.numel() for p in net.parameters()) == row["support_parameters"]
    assert row["macs"] == sum(layer.weight.numel() for layer in linears) == row["support_macs"]
    assert row["nonzeros"] == sum(int(p.count_nonzero()) for p in net.parameters())
    assert row["bytes"] == (folder / SMALL).stat().st_size
    assert row["density"] * row["ratio"] == pytest.approx(1)
    assert row["density"] == row["parameters"] / row["dense_parameters"]
    dense = build(row["model"], shape=tuple(row["shape"]), classes=row["classes"])
    assert row["dense_parameters"] == sum(p.numel() for p in dense.parameters())
    assert row["dense_macs"] == sum(p.numel() for p in dense.parameters() if p.dim() == 2)
    assert row["architecture"] == "-".join(str(layer.in_features) for layer in linears)
    asked = experiment.method.price.params  # type: ignore[attr-defined]
    assert 0.95 * asked < row["density"] <= asked
    assert row["train_seconds"] > 0
    data = load_data("digits", validation=experiment.validation, seed=1)
    for key, part in (("error", data.test), ("train_error", data.train), ("validation_error", data.validation)):
        if not len(part):
            assert row[key] is None
            continue
        wrong = (net(part.x).argmax(1) != part.y).double().mean().item()
        assert row[key] == pytest.approx(100 * wrong, abs=1e-9)
    assert row["gated_error"] == pytest.approx(row["error"], abs=100 * 1.5 / len(data.test))


def test_a_finished_run_is_only_read(
    finished: tuple[Experiment, Path, dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, folder, row = finished
    stamp = (folder / CHECKPOINT).stat().st_mtime_ns
    monkeypatch.setattr("paring.cli.experiment.fit", None)
    assert experiment.result(root) == row
    assert experiment.run(root) == row
    assert (folder / CHECKPOINT).stat().st_mtime_ns == stamp


def test_the_same_run_gives_the_same_row(root: Path, tmp_path: Path) -> None:
    first = UNITS.run(root, progress=False)
    again = UNITS.run(tmp_path, progress=False, data=load_data("digits", validation=100, seed=1))
    assert {k: v for k, v in first.items() if k not in TIMES} == {k: v for k, v in again.items() if k not in TIMES}
    assert (tmp_path / UNITS.name / SMALL).read_bytes() == (root / UNITS.name / SMALL).read_bytes()


def test_fine_tuning_trains_the_small_network_on(root: Path, tmp_path: Path) -> None:
    tuned = replace(UNITS, finetune=Recipe(epochs=2, batch=100, lr=2e-3))
    row = tuned.run(tmp_path, progress=False)
    before = UNITS.run(root, progress=False)
    assert set(row) == KEYS
    assert row["epochs"] == 4
    assert row["gated_error"] is None
    assert row["parameters"] == before["parameters"]
    assert row["train_error"] < before["train_error"]
    assert (tmp_path / tuned.name / "finetune" / CHECKPOINT).exists()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_two_processes_never_share_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / UNITS.name
    folder.mkdir()
    row = {"source": "measured", "model": UNITS.model, "data": UNITS.data}
    monkeypatch.setattr(Experiment, "_row", lambda *_: row)
    with open(folder / ".lock", "w") as other:  # a lock belongs to the open file, so this stands for another process
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match=f"another process is training in {re.escape(str(folder))}"):
            UNITS.run(tmp_path, progress=False)
        assert not (folder / RESULT).exists()
    for name in ("config.json", RESULT):
        (folder / f".{name}.0a1b2c3d.partial").write_text("what a killed writer leaves")
    assert UNITS.run(tmp_path, progress=False) == row
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob(".*.partial"))
    assert UNITS.result(tmp_path) == row


def test_the_lock_goes_with_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("no")

    monkeypatch.setattr(Experiment, "_row", fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^no$"):
            UNITS.run(tmp_path, progress=False)
    assert UNITS.result(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "is damaged"), ("", "is damaged"), ('{"run": "abc"', "is damaged"), ("[1]", r"holds \[1\] where")],
)
def test_damaged_result_is_a_clear_error(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / UNITS.name / RESULT
    path.parent.mkdir()
    path.write_text(text)
    for read in (UNITS.result, UNITS.run):
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} {why}.*run it again in another folder"):
            read(tmp_path)
    assert path.read_text() == text


def test_a_result_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / UNITS.name / RESULT
    path.parent.mkdir()
    path.write_text(json.dumps({"run": INPUTS.key, "model": "lenet_300_100", "data": "digits"}))
    with pytest.raises(ValueError, match=f"holds the result of run '{INPUTS.key}', not of {UNITS.key}"):
        UNITS.result(tmp_path)


def test_no_result_yet(tmp_path: Path) -> None:
    assert UNITS.result(tmp_path) is None


def test_gates_that_still_move_at_the_end_make_a_row_without_warnings(tmp_path: Path) -> None:
    """Warnings are errors here; expected costs carry a gradient until the gates are held."""
    row = Experiment("lenet_300_100", "digits", L0(price=1e-4), Recipe(epochs=1)).run(tmp_path, progress=False)
    assert 0 < row["expected_parameters"] < row["dense_parameters"]


def test_few_examples_of_each_part(tmp_path: Path) -> None:
    experiment = replace(UNITS, method=Dense(), recipe=Recipe(epochs=1, seed=1), examples=60)
    data, whole = experiment.dataset(), replace(experiment, examples=0).dataset()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 60, 60]
    assert torch.bincount(data.train.y, minlength=10).tolist() == [6] * 10
    assert len(replace(experiment, examples=10**6).dataset().train) == len(whole.train)
    row = experiment.run(tmp_path, progress=False)
    assert row["error"] == replace(experiment).run(tmp_path, progress=False, data=whole)["error"], "finished: only read"
    assert round(row["error"] * 60 / 100, 6) % 1 == 0
