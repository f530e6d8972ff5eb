"""What modules compute from their parameters in eval mode and keep does not stand in the way of anything."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core.fresh import fresh
from paring.testing import Chain, chain_batch, difference


class Scaled(nn.Module):
    """A layer whose units have scales of their own, looked up once in eval mode and kept until it trains again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(inputs, outputs), nn.Parameter(torch.rand(outputs) + 0.5)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Scaled:
        if mode:
            self.kept = {}
        super().train(mode)
        return self

    def scales(self) -> Tensor:
        if self.training:
            return self.scale.exp()
        if "cpu" not in self.kept:
            self.kept["cpu"] = self.scale.detach().exp()
        return self.kept["cpu"]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x)) * self.scales()


def made() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    net, x = nn.Sequential(Scaled(6, 16), Scaled(16, 8), nn.Linear(8, 3)).eval(), torch.randn(4, 6)
    net(x)
    return net, x


@pytest.mark.parametrize("inplace", [False, True])
def test_units_go_after_the_network_was_evaluated(inplace: bool) -> None:
    net, x = made()
    with torch.no_grad():
        net.get_parameter("0.fc.weight")[:5], net.get_parameter("0.fc.bias")[:5] = 0, 0
    before = net(x)
    small, report = pr.compact(net, x, inplace=inplace)
    assert not report.rolled_back
    assert small.get_parameter("0.scale").shape == (11,)
    assert torch.allclose(small(x), before, atol=1e-6)
    assert not small.training


def test_budgets_are_met_after_the_network_was_evaluated() -> None:
    net, x = made()
    small, outcome = pr.prune(net, [x], lambda net, x: net(x).square().mean(), to=pr.Budget(params=0.6), epochs=0)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert left <= 0.6
    assert left == pytest.approx(outcome.shares["parameters"])
    assert {row.layers for row in pr.groups(net, x) if row.gateable} == {("0.fc",), ("1.fc",)}


def test_others_are_not_copied_and_modes_stay() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert fresh(plain) is plain
    net, _ = made()
    net[0].train()
    modes, kept = [m.training for m in net.modules()], copy.copy(net[1].kept)
    again = fresh(net)
    assert [m.training for m in again.modules()] == modes
    assert not again.get_submodule("1").kept
    assert net[1].kept == kept


class Remembers(Chain):
    """Keeps what it answered last, as maps of attention are kept."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = [super().forward(x)]
        return self.last[0]


@pytest.mark.skipif(torch.__version__ < (2, 8), reason="torch 2.7 captures no network that keeps tensors in attributes")
def test_what_a_forward_keeps_in_attributes_is_no_hindrance_to_training() -> None:
    torch.manual_seed(0)
    net, (x, y) = Remembers(), chain_batch()
    net(x).sum().backward()
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    method = pr.Stack(pr.GMP(density=0.5, structure=pr.select.Units()), pr.Shrink(every=2))
    run = pr.attach(net, method, x[:2], optimizer=opt, steps=4)
    for _ in range(4):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    small = run.finish()
    assert difference(small, run.finish(), x) == 0
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in Remembers().parameters())
