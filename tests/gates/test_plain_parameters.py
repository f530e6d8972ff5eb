"""Layers of one's own that multiply by a plain parameter take gates, and lose units exactly."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.removal import compact


class Projected(nn.Module):
    """A linear layer of its own kind; swapped: its weight is (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, *, swapped: bool, bias: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.weight = nn.Parameter(torch.randn((inputs, outputs) if swapped else (outputs, inputs)) / inputs**0.5)
        self.shift = nn.Parameter(torch.randn(outputs) / 4) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight if self.swapped else nn.functional.linear(x, self.weight)
        return y if self.shift is None else y + self.shift


class Pile(nn.Module):
    """Three of them. (N, 6) -> (N, 3)."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        sizes = ((6, 12), (12, 10), (10, 3))
        self.layers = nn.ModuleList(Projected(a, b, swapped=swapped, bias=True) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Sums(nn.Module):
    """A graph convolution: every node takes the sum of what its neighbours send. (nodes, inputs), (2, edges) -> (nodes, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = Projected(inputs, outputs, swapped=False, bias=False)
        self.bias = nn.Parameter(torch.randn(outputs) / 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sent = self.lin(x)[edges[0]]
        index = edges[1].view(-1, 1).expand_as(sent)
        return sent.new_zeros(x.shape[0], sent.shape[1]).scatter_add_(0, index, sent) + self.bias


class Nodes(nn.Module):
    """Two graph convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = Sums(6, 12), Sums(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x, edges).relu(), edges).relu())


def made(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(7, 6, dtype=torch.float64)
    if kind == "graph":
        return Nodes().double().eval(), (x, torch.randint(7, (2, 20)))
    return Pile(swapped=kind == "swapped").double().eval(), (x,)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("kind", ["rows", "swapped", "graph"])
def test_their_units_take_gates_where_they_are_read(kind: str, tmp_path: Path) -> None:
    net, x = made(kind)
    hidden = [row for row in pr.groups(net, x) if row.gateable]
    assert [row.units for row in hidden] == [12, 10]
    small, _ = pr.prune(net, [x], lambda net, x: net(*x).square().mean(), to=pr.Budget(params=0.6), epochs=0)
    assert 0.5 * count(net) < count(small) <= 0.6 * count(net)
    pr.save(small, tmp_path / "small.safetensors")
    assert torch.equal(pr.load(net, tmp_path / "small.safetensors")(*x), small(*x))


@pytest.mark.filterwarnings("ignore:L0 opened gates again")
@pytest.mark.parametrize("kind", ["rows", "swapped", "graph"])
def test_gates_that_train_close_and_what_they_closed_goes(kind: str) -> None:
    net, x = made(kind)
    dense, wanted = count(net), net(*x).detach()
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.5), at="units"), example=x, optimizer=optimizer, steps=300)
    for _ in range(300):
        optimizer.zero_grad()
        (net(*x) - wanted).square().mean().backward()
        optimizer.step()
    gated = copy.deepcopy(net).eval()
    small = run.finish().eval()
    assert count(small) < 0.7 * dense
    assert type(small) is type(made(kind)[0])
    assert (gated(*x) - small(*x)).abs().max() < 1e-12


def test_a_graph_convolution_loses_dead_units() -> None:
    net, x = made("graph")
    with torch.no_grad():
        net.first.lin.weight[:4] = 0
        net.first.bias[:4] = torch.tensor([0.0, -1.0, 0.0, -2.0])  # relu closes them
    small, report = compact(net, x)
    assert report.form == "module"
    assert small.first.lin.weight.shape == (8, 6)
    assert small.second.lin.weight.shape == (10, 8)
    other = (torch.randn(9, 6, dtype=torch.float64), torch.randint(9, (2, 31)))
    for one in (x, other):
        assert (net(*one) - small(*one)).abs().max() < 1e-14
