"""Mixtures of experts whose weights are stacked in one parameter: units go that are dead in all experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.analysis import wiring
from paring.cost import CostModel
from paring.removal import compact

EXPERTS, WIDTH, HIDDEN, CHOSEN = 4, 6, 10, 2


class Mixture(nn.Module):
    """A router, and experts with a gated linear unit: each token goes through the two that it scores highest."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, WIDTH) / 2)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN) / 2) if bias else None
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 2)

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and what they count for, (N, CHOSEN) both."""
        scores, experts = self.router(x).topk(CHOSEN, -1)
        return experts, scores.softmax(-1)


class Looked(Mixture):
    """The weights of the experts of each token are looked up, halves one behind the other."""

    def forward(self, x: Tensor) -> Tensor:
        experts, share = self.routed(x)
        which = experts.reshape(-1)
        y = torch.bmm(self.up[which], x.repeat_interleave(CHOSEN, 0).unsqueeze(-1)).squeeze(-1)
        if self.up_bias is not None:
            y = y + self.up_bias[which]
        gate, up = y.chunk(2, -1)
        y = torch.bmm((F.silu(gate) * up).unsqueeze(1), self.down[which]).squeeze(1)
        return (y.view(-1, CHOSEN, WIDTH) * share.unsqueeze(-1)).sum(1)


class Turns(Mixture):
    """Expert by expert, and entries of both halves in turns, as in gpt-oss."""

    def forward(self, x: Tensor) -> Tensor:
        experts, share = self.routed(x)
        out = torch.zeros_like(x)
        for number in range(EXPERTS):
            y = x @ self.up[number].T
            if self.up_bias is not None:
                y = y + self.up_bias[number]
            y = ((y[..., 1::2] + 1) * F.silu(y[..., ::2])) @ self.down[number]
            out = out + y * (share * (experts == number)).sum(-1, keepdim=True)
        return out


class All(Mixture):
    """All experts at once."""

    def forward(self, x: Tensor) -> Tensor:
        experts, share = self.routed(x)
        gate, up = torch.einsum("nw,ehw->neh", x, self.up).chunk(2, -1)
        y = torch.einsum("neh,ehw->new", F.silu(gate) * up, self.down)
        weights = torch.zeros_like(y[..., 0]).scatter(1, experts, share)
        return (y * weights.unsqueeze(-1)).sum(1)


class Net(nn.Module):
    """A mixture in a residual block. (N, WIDTH) -> (N, 3)."""

    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.stem, self.mixture, self.head = nn.Linear(WIDTH, WIDTH), mixture, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sin()
        return self.head(x + self.mixture(x))


KINDS = [(Looked, True), (Looked, False), (Turns, False), (Turns, True), (All, False)]


def made(kind: type[Mixture], bias: bool) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net(kind(bias=bias)).double().eval(), torch.randn(5, WIDTH, dtype=torch.float64)


def rows(kind: type[Mixture], units: list[int]) -> list[int]:
    """The rows of both halves."""
    return [2 * u + half if kind is Turns else u + half * HIDDEN for u in units for half in (0, 1)]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_units_go_that_are_dead_in_every_expert(kind: type[Mixture], bias: bool, tmp_path: Path) -> None:
    net, x = made(kind, bias)
    fresh, _ = made(kind, bias)
    with torch.no_grad():
        net.mixture.up[:, rows(kind, [0, 7])] = 0
        net.mixture.up[1, rows(kind, [3])] = 0  # dead in one of them
        net.mixture.down[:, [4]] = 0  # nobody reads it
        if bias:
            net.mixture.up_bias[:, rows(kind, [0, 7])] = 0
    small, report = compact(net, x)
    assert not report.rolled_back
    assert report.form == "module"
    assert small.mixture.up.shape == (EXPERTS, 2 * (HIDDEN - 3), WIDTH)
    assert small.mixture.down.shape == (EXPERTS, HIDDEN - 3, WIDTH)
    assert small.mixture.router.out_features == EXPERTS
    for batch in (x, torch.randn(40, WIDTH, dtype=torch.float64) * 5):
        assert (net(batch) - small(batch)).abs().max() < 1e-13 * net(batch).abs().max()
    pr.save(small, tmp_path / "small.safetensors")
    assert torch.equal(pr.load(fresh, tmp_path / "small.safetensors")(x), small(x))


def test_an_expert_that_computes_nothing_stays() -> None:
    """Tokens that the router sends to it would go elsewhere."""
    net, x = made(Looked, False)
    with torch.no_grad():
        net.mixture.down[2] = 0
    small, _ = compact(net, x)
    assert count(small) == count(net)


def test_the_graph_form_loses_them_as_well() -> None:
    net, x = made(Turns, True)
    with torch.no_grad():
        net.mixture.down[:, [0, 9]] = 0
    small, report = compact(net, x, form="graph")
    assert report.form == "graph"
    assert count(net) - count(small) == 2 * EXPERTS * (3 * WIDTH + 2)
    assert (net(x) - small(x)).abs().max() < 1e-13


@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_gates_count_what_leaves_with_a_unit(kind: type[Mixture], bias: bool) -> None:
    net, x = made(kind, bias)
    hidden = next(row for row in pr.groups(net, x) if row.layers == ("mixture.up",))
    assert hidden.parameters == EXPERTS * (3 * WIDTH + 2 * bias)
    left = count(net) - 4 * hidden.parameters
    share = pr.Budget(params=left / count(net) + 1e-6)
    small, _ = pr.prune(net, [x], lambda net, x: net(x).square().mean(), to=share, at="units:mixture.up", epochs=0)
    assert count(small) == left


def test_of_experts_that_are_looked_up_one_matrix_multiplies() -> None:
    net, x = made(Looked, False)
    found = wiring(net, x)
    expected = WIDTH * (WIDTH + EXPERTS + 3) + CHOSEN * 3 * HIDDEN * WIDTH
    assert int(CostModel.of(net, found)().macs) == expected
    assert int(CostModel.of(net, found)().parameters) == count(net)
