"""The loop: deterministic, resumable bit for bit after a kill, and loud when something goes wrong."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from marks import CUT_SHORT
from paring.data import load
from paring.models import build
from paring.testing import same_state
from paring.train import CHECKPOINT, METRICS, CheckpointError, Diverged, Recipe, fit
from tests import forked

pytestmark = CUT_SHORT

DATA = load("digits", validation=100)
RECIPE = Recipe(epochs=4, batch=128, lr=2e-3, ema=0.9, seed=3, crop=1, schedule="cosine", warmup=1.0)
METHOD = pr.L0(price=pr.Budget(params=0.3), at="units")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("lenet_300_100", shape=DATA.shape, classes=DATA.classes)


def trained(folder: Path | None = None, **changes: Any) -> pr.train.Fit:
    return fit(network(), METHOD, DATA, replace(RECIPE, **changes), folder=folder, progress=False)


def test_what_was_said_closes_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(RECIPE, epochs=1)
    with pytest.warns(pr.ParingWarning, match="asks for nothing to go"):
        fit(network(), pr.L0(), DATA, short, label="mine")
    assert capsys.readouterr().err.splitlines()[-1].startswith("mine: L0(price=0) asks for nothing to go")
    fit(network(), pr.L0(price=1e-3), DATA, short, label="mine")
    assert "mine: L0" not in capsys.readouterr().err


def test_deterministic_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = trained()
    torch.manual_seed(5)
    network()
    torch.rand(7)  # another state of the caller's generator
    second = trained()
    assert same_state(first.net.state_dict(), second.net.state_dict())
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())
    state = torch.get_rng_state()
    fit(network(), METHOD, DATA, replace(RECIPE, epochs=1), progress=False)
    network()  # seeds the generator; compare with a fit in between
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    other = trained(seed=4)
    assert not same_state(first.net.state_dict(), other.net.state_dict())


_CHILD = """
import os, signal, sys
sys.path.insert(0, {path!r})
import torch
torch.set_num_threads(1)
import paring as pr
from test_fit_child import run
stop = int(sys.argv[2])
if stop:
    step = pr.Run.after_step
    def killed(self, opt):
        step(self, opt)
        if self.clock.step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    pr.Run.after_step = killed
run(sys.argv[1])
"""

_RUN = """
from dataclasses import replace
from pathlib import Path
import torch
import paring as pr
from paring.data import load
from paring.models import build
from paring.train import Recipe, fit

METHOD = {method}

def run(folder):
    data = load("digits", validation=100)
    torch.manual_seed(0)
    net = build("lenet_300_100", shape=data.shape, classes=data.classes)
    recipe = Recipe(epochs=4, batch=128, lr=2e-3, ema=0.9, seed=3, crop=1, schedule="cosine", warmup=1.0)
    done = fit(net, METHOD, data, recipe, folder=folder, progress=False)
    torch.save(done.net.state_dict(), Path(folder) / "final.pt")
"""


BUDGET = 'pr.L0(price=pr.Budget(params=0.3), at="units")'
SHRINKING = (
    'pr.Stack(pr.L0(price=pr.Budget(params=0.3), at="inputs", hold=0.7), '
    'pr.Shrink(every="0.5ep", multiple_of=4, saving=0.01, measure=False))'
)


@pytest.mark.slow
@pytest.mark.parametrize("method", [BUDGET, SHRINKING], ids=["budget", "shrinking"])
def test_killed_at_a_random_step_resumes_bit_for_bit(tmp_path: Path, method: str) -> None:
    (tmp_path / "test_fit_child.py").write_text(_RUN.format(method=method))
    script = tmp_path / "child.py"
    script.write_text(_CHILD.format(path=str(tmp_path)))
    steps = 4 * -(-len(DATA.train) // 128)
    stop = random.SystemRandom().randrange(1, steps)

    def child(folder: Path, at: int) -> int | None:
        return forked.run(script, tmp_path, str(folder), str(at), timeout=120)[0]

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert child(straight, 0) == 0
    assert child(killed, stop) == -signal.SIGKILL, f"meant to die at step {stop} of {steps}"
    assert not (killed / "final.pt").exists()
    assert child(killed, 0) == 0
    a, b = (torch.load(folder / "final.pt", weights_only=True) for folder in (straight, killed))
    assert same_state(a, b), f"killed at step {stop}"
    rows = [[json.loads(line) for line in (folder / METRICS).read_text().splitlines()] for folder in (straight, killed)]
    for x, y in zip(*rows, strict=True):
        assert {k: v for k, v in x.items() if "seconds" not in k} == {k: v for k, v in y.items() if "seconds" not in k}
    assert any("shrinks" in row for row in rows[0]) == (method == SHRINKING)


def test_shrinking_trains_to_the_same_network_and_resumes(tmp_path: Path) -> None:
    """With an EMA, a schedule and a checkpoint, in float32: the same network as without, up to rounding."""
    l0 = pr.L0(price=pr.Budget(params=0.3), at=("units:fc1", "inputs:fc1"), hold=0.7)
    shrink = pr.Shrink(every="0.5ep", multiple_of=4, saving=0.01, measure=False)
    recipe = replace(RECIPE, epochs=3)
    plain = fit(network(), l0, DATA, recipe, progress=False)
    both = pr.Stack(l0, shrink)
    small = fit(network(), both, DATA, recipe, folder=tmp_path, progress=False)
    assert sum(p.numel() for p in small.net.parameters()) < 0.5 * sum(p.numel() for p in plain.net.parameters())
    assert [record["done"] for row in small.rows for record in row.get("shrinks", [])] == [True]
    assert small.rows[-1]["support_parameters"] == plain.rows[-1]["support_parameters"]
    x = DATA.test.x
    with torch.no_grad():
        close = (plain.net(x) - small.net(x)).abs().max().item()
    assert close < 1e-3
    again = fit(network(), both, DATA, recipe, folder=tmp_path, progress=False)
    assert same_state(small.net.state_dict(), again.net.state_dict())
    one, other = plain.run.finish(), again.run.finish()
    assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    first = trained(tmp_path)
    stamp = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    second = trained(tmp_path)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == stamp
    assert same_state(first.net.state_dict(), second.net.state_dict())
    assert first.rows == second.rows


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    straight = trained()
    trained(tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(pr.ParingWarning, match="cut short"):
        again = trained(tmp_path)
    assert same_state(straight.net.state_dict(), again.net.state_dict())


def test_all_checkpoints_damaged_is_a_clear_error(tmp_path: Path) -> None:
    trained(tmp_path)
    for path in (tmp_path / CHECKPOINT, tmp_path / (CHECKPOINT + ".previous")):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"To begin anew, name another folder"):
        trained(tmp_path)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        trained(tmp_path, lr=1e-4)
    with pytest.raises(CheckpointError, match="does not fit"):
        fit(network(), pr.L0(price=1.0), DATA, RECIPE, folder=tmp_path, progress=False)


def test_divergence_names_the_step_and_the_checkpoint(tmp_path: Path) -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return self.inner(x) * (float("nan") if self.calls == 15 else 1.0)

    with pytest.raises(
        Diverged, match=r"nan at step 15 \(epoch 2\); last good checkpoint: .*checkpoint.pt \(after epoch 1\)"
    ):
        fit(Explodes(), pr.Dense(), DATA, replace(RECIPE, epochs=3), folder=tmp_path, progress=False)
    assert len((tmp_path / METRICS).read_text().splitlines()) >= 1


def test_rows_tell_costs_and_validation_error() -> None:
    rows = trained().rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert 0 <= row["error"] <= 100
        assert 0 < row["support_parameters"] <= 50_610
        assert 0 < row["expected_macs"] <= 49_600 * 1.01
        assert set(row["units"]) == {"fc1", "fc2", "fc3"}


def test_accumulation_is_the_large_batch() -> None:
    """Two half batches with one optimizer step are one whole batch (up to rounding)."""
    one = fit(network(), pr.Dense(), DATA, Recipe(epochs=2, batch=200, optimizer="sgd", lr=0.1), progress=False)
    two = fit(
        network(), pr.Dense(), DATA, Recipe(epochs=2, batch=100, accumulate=2, optimizer="sgd", lr=0.1), progress=False
    )
    for name, value in one.net.state_dict().items():
        assert torch.allclose(value, two.net.state_dict()[name], atol=1e-4), name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"schedule": "step"}, "milestones"),
        ({"warmup": 90.0}, "warmup = 90.0"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay = inf"),
        ({"optimizer": "rmsprop"}, "choose one of adam, adamw, sgd"),
        ({"schedule": "cosin"}, "choose one of constant"),
        ({"epochs": 1.5}, "whole number"),
    ],
)
def test_recipe_refuses_what_makes_no_sense(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Recipe(**change)


def test_schedules() -> None:
    steps = [
        Recipe(epochs=10, schedule="step", milestones=(4, 8), gamma=0.1).factor(epoch * 5, 5) for epoch in range(10)
    ]
    assert steps == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)
    cosine = Recipe(epochs=10, schedule="cosine")
    assert cosine.factor(0, 5) == 1
    assert cosine.factor(25, 5) == pytest.approx(0.5)
    assert cosine.factor(50, 5) == pytest.approx(0)
    warm = Recipe(epochs=10, warmup=2.0)
    assert [warm.factor(s, 5) for s in range(12)] == sorted(warm.factor(s, 5) for s in range(12))
    assert 0 < warm.factor(0, 5) < warm.factor(9, 5) < 1 == warm.factor(10, 5)


def test_parameters_broken_by_the_last_step_are_never_checkpointed(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch=len(DATA.train), optimizer="sgd", lr=3e38, momentum=0.9)
    with pytest.raises(Diverged, match=r"(not finite any more|validation loss is).*; last good checkpoint: none yet"):
        fit(network(), pr.Dense(), DATA, recipe, folder=tmp_path, progress=False)
    assert not (tmp_path / CHECKPOINT).exists()


def test_inputs_need_not_be_images() -> None:
    flat = replace(
        DATA,
        **{
            part: replace(getattr(DATA, part), x=getattr(DATA, part).x.flatten(1))
            for part in ("train", "validation", "test")
        },
    )
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    rows = fit(net, pr.L0(price=1e-5), flat, Recipe(epochs=2), progress=False).rows
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_without_a_capture_a_dense_network_still_trains_and_says_so() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            return out if float(x.detach().sum()) > -1 else -out

    rows = fit(Branch(), pr.Dense(), DATA, Recipe(epochs=1), progress=False).rows
    assert rows[0]["note"].startswith("costs are not recorded")
    assert rows[1]["epoch"] == 1


def test_conditional_computation_is_the_same_training(tmp_path: Path) -> None:
    method = pr.L0(price=1e-3, at="inputs", keep=0.3)
    whole, part, resumed = (
        fit(network(), method, DATA, replace(RECIPE, epochs=e, conditional=c), folder=tmp_path / name, progress=False)
        for name, e, c in (("whole", 3, 0), ("part", 3, 1), ("part", 3, 1))
    )
    assert [row["loss"] for row in whole.rows] == pytest.approx([row["loss"] for row in part.rows], rel=1e-4)
    assert same_state(part.net.state_dict(), resumed.net.state_dict())


def test_conditional_computation_refuses_compile() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        Recipe(conditional=8, compile=True)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_order_is_a_choice(channels_last: bool) -> None:
    seen: list[bool] = []
    second = nn.Conv2d(3, 4, 3)
    second.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), second, nn.Flatten(), nn.Linear(64, 10))
    fit(net, pr.Dense(), DATA, Recipe(epochs=1, channels_last=channels_last), progress=False)
    assert second.weight.is_contiguous() != channels_last
    assert set(seen) == {not channels_last}
