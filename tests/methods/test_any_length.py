"""Methods' defaults in trainings of one step to many: no refusal, and no density that comes in one cut."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paring as pr
from paring.cli.main import main
from paring.cli.method_list import METHODS
from paring.core import Clock, attached
from paring.gates import MaskGate
from paring.methods import GMP, SET, STR, ContinuousSparsification, RigL


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def densities(method: pr.Method, steps: int, epoch_steps: int | None = None) -> tuple[list[int], list[torch.Tensor]]:
    """Open weights and masks of the first layer after every step."""
    model = net()
    x, y = torch.randn(10, 12), torch.randint(3, (10,))
    run = pr.attach(model, method, x[:2], steps=steps, epoch_steps=epoch_steps)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.05), momentum=0.9)
    masks = []
    while run.clock.step < steps:
        opt.zero_grad()
        (F.cross_entropy(model(x), y) + run.penalty()).backward()
        run.step(opt)
        gate = model[0].weight_gate
        assert isinstance(gate, MaskGate)
        masks.append(gate.mask.clone())
    return [int(mask.sum()) for mask in masks], masks


@pytest.mark.parametrize("steps", [1, 7, 150])
def test_gmp_arrives_and_in_small_cuts(steps: int) -> None:
    opened, _ = densities(GMP(), steps)
    assert opened[-1] == 24
    if steps == 150:
        assert len(set(opened)) == 8, "dense, and eight cuts of which the last closes nothing more"
        cuts = [before - after for before, after in itertools.pairwise([240, *opened])]
        assert max(cuts) <= 0.3 * 240
        assert opened[112] == 24, "at the end of the ramp"
    elif steps == 7:
        assert len(set(opened)) == 5


@pytest.mark.parametrize("epoch_steps", [None, 30])
@pytest.mark.parametrize("steps", [20, 60])
def test_exchanges_happen_in_short_trainings(epoch_steps: int | None, steps: int) -> None:
    _, masks = densities(SET(), steps, epoch_steps)
    assert sum(not torch.equal(a, b) for a, b in itertools.pairwise(masks)) >= 5
    assert sum(RigL()._exchanges(Clock(step, 0, steps, epoch_steps)) for step in range(steps)) >= 7
    assert all(int(mask.sum()) == int(masks[0].sum()) for mask in masks)


def test_long_trainings_have_the_papers_lengths() -> None:
    long = Clock(0, 0, 100_000, 500)
    assert GMP()._every(long) == RigL()._every(long) == 100
    assert SET()._every(long) == 500
    assert ContinuousSparsification().point(long) == 1_000
    assert ContinuousSparsification().point(Clock(0, 0, 1_000, 500)) == 125
    assert ContinuousSparsification().point(Clock(0, 0, 3, 1)) == 0
    assert GMP(every=7)._every(long) == 7
    conv4 = Clock(0, 0, 1_100, 1_100)  # one epoch of the smallest evidence, made with 100 steps
    assert GMP()._every(conv4) == RigL()._every(conv4) == 100


def test_one_cut_that_was_asked_for_is_said() -> None:
    model = net()
    with pytest.warns(
        pr.ParingWarning, match=r"prunes once, to density 0.1 in one cut: the ramp is 112.5 of 150 steps"
    ):
        pr.attach(model, GMP(every=120), torch.ones(2, 12), steps=150)
    assert len(attached(model).said) == 1
    pr.attach(net(), GMP(every=100), torch.ones(2, 12), steps=150)


def test_lengths_beyond_the_training_are_said() -> None:
    gates = pr.L0(price=1e-6, at="units")
    for shrink, said in (
        (pr.Shrink(every=30), ["Shrink(every=30) looks every 30 steps, but training has 20"]),
        (pr.Shrink(every=20, retire=0.2, patience="2ep"), ["Shrink(patience='2ep') retires no gate"]),
        (pr.Shrink(every="1ep"), []),
    ):
        model = net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pr.ParingWarning)
            pr.attach(model, pr.Stack(gates, shrink), torch.ones(2, 12), steps=20, epoch_steps=20)
        found = attached(model).said
        assert len(found) == len(said)
        assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_soft_thresholds_train_with_their_defaults() -> None:
    model, x = net(), torch.randn(4, 12)
    run = pr.attach(model, STR(), x[:2], steps=2)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1))
    model(x).pow(2).mean().backward()
    before = STR().thresholds(model)
    run.step(opt)
    assert STR().thresholds(model) != before


@pytest.mark.filterwarnings("ignore::paring.ParingWarning")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])
def test_paring_train_runs_every_method_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of two steps each; `paring train --method NAME --epochs 1` and `50` are the same code."""
    words = ["train", "--method", name, "--epochs", "2", "--batch", "719", "--runs", str(tmp_path), "--quiet", "--json"]
    monkeypatch.setattr("paring.cli.commands._page", lambda folder, row: None)
    assert main([*words, "--threads", "1"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["error"] < 100
