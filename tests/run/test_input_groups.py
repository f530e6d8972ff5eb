"""Networks trained with an N:M structure are N:M when they are finished, and while they shrink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring import select
from paring.gates import MaskGate, input_groups
from paring.testing import difference

pytestmark = CUT_SHORT


def worst(weight: Tensor) -> int:
    moved = (weight.detach() != 0).movedim(1, -1).reshape(-1, weight.shape[1])
    return max(int(moved[:, start : start + 4].sum(1).max()) for start in range(0, moved.shape[1], 4))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5),
    ).double()  # fmt: skip
    with torch.no_grad():
        for layer, units in ((net[0], [1, 4, 5, 6, 7]), (net[6], [0, 1, 2, 3, 9])):
            layer.weight[units] = 0
            layer.bias[units] = -1.0
    return net


def train(net: nn.Module, method: pr.Method, steps: int = 12) -> tuple[pr.Run, Tensor]:
    x, y = torch.randn(8, 4, 5, 5, dtype=torch.float64), torch.randint(5, (8,))
    run = pr.attach(net, method, x[:2], steps=steps, loss=lambda copy_: F.cross_entropy(copy_(x), y))
    opt = torch.optim.SGD(run.parameter_groups(lr=0.01), momentum=0.9)
    while True:
        while run.clock.step < steps:
            opt.zero_grad()
            (F.cross_entropy(net(x), y) + run.penalty()).backward()
            run.step(opt)
        if not run.next_round(opt):
            return run, x


TWO_FOUR = select.NM(2, 4)


@pytest.mark.parametrize(
    "method",
    [
        pr.GMP(density=0.5, every=3, structure=TWO_FOUR),
        pr.IMP(prunings=1, rate=0.5, structure=TWO_FOUR),
        pr.AtInit(score="magnitude", density=0.5, structure=TWO_FOUR),
        pr.DNW(density=0.5, structure=TWO_FOUR),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_finished_network_is_still_two_four(method: pr.Method) -> None:
    net = network()
    run, x = train(net, method)
    assert input_groups(net) == dict.fromkeys(("0", "2", "6", "8"), 4)
    small = run.finish()
    assert difference(small, net.eval(), x) < 1e-10
    assert all(worst(p) <= 2 for p in small.parameters() if p.dim() > 1)
    assert small[2].in_channels == 4, "channels 4 to 7 are a group"
    assert small[8].in_features == 12
    assert any("inputs of an N:M layer go in whole groups" in row.kept for row in run.report.rows)


def test_a_pruned_network_that_is_trained_on_keeps_its_pattern() -> None:
    net = network()
    with torch.no_grad():
        for layer in net:
            if hasattr(layer, "weight"):
                layer.weight.mul_(TWO_FOUR.best(layer.weight.abs()))
    run, _ = train(net, pr.methods.Masked(structure=TWO_FOUR))
    assert all(worst(p) <= 2 for p in run.finish().parameters() if p.dim() > 1)


def test_other_structures_and_embeddings_have_no_groups() -> None:
    net = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 4))
    run = pr.attach(net, pr.GMP(density=0.5, structure=TWO_FOUR), torch.zeros(2, 3, dtype=torch.int64), steps=2)
    assert input_groups(net) == {"1": 4}
    assert isinstance(run.net[0].weight_gate, MaskGate)
    plain = nn.Sequential(nn.Linear(4, 4))
    pr.attach(plain, pr.GMP(structure=select.Blocks()), torch.ones(2, 4), steps=2)
    assert input_groups(plain) == {}


def test_what_is_cut_while_training_goes_in_whole_groups_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).double()
    method = pr.Stack(
        pr.L0(price=1e-9, at="units", hold=0.5),
        pr.GMP(density=0.5, every=1, ramp=(0.0, 0.2), structure=TWO_FOUR, at="weights:2|4"),
        pr.Shrink(every=2, multiple_of=1, saving=0.0, measure=False),
    )
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(5, (30,))
    run = pr.attach(net, method, x[:2], steps=20)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05)
    closed = [range(0, 10), range(3, 20)]
    gates = [gate for _, kind, gate in pr.core.gates(net) if kind == "units"]
    for gate, units in zip(gates, closed, strict=True):
        with torch.no_grad():
            gate.log_alpha[:] = 2.0
            gate.log_alpha[list(units)] = -4.0
    while run.clock.step < 20:
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
    assert net[2].in_features < 24
    assert net[4].in_features < 24
    for layer in (net[2], net[4]):
        kept = layer.weight_gate.kept_1
        assert len(kept) % 4 == 0
        assert torch.equal(kept.view(-1, 4) % 4, torch.arange(4).expand(len(kept) // 4, 4)), "whole groups"
        assert worst(layer.weight * layer.weight_gate.mask) <= 2
    small = run.finish()
    assert all(worst(small[name].weight) <= 2 for name in (2, 4))
    assert difference(small, net.eval(), x) < 1e-10
