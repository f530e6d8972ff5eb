"""Units behind a global response norm (ConvNeXt V2) go exactly, and take gates."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.removal import compact

Norm = type[nn.Module]


class Last(nn.Module):
    """Channels last, ε an attribute, the sum in one operation, as timm has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps = 0.2
        self.weight, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        share = size / (size.mean(dim=-1, keepdim=True) + self.eps)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * share)


class First(nn.Module):
    """Channels first, one added to the scale, and nothing else added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.small = 0.2
        self.gamma = nn.Parameter(torch.randn(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return x * (size / (self.small + size.mean(1, keepdim=True))) * (1 + self.gamma)


class Written(nn.Module):
    """ε is written into the forward, as in the paper's code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(1, 1, 1, width)), nn.Parameter(torch.randn(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 0.2))) + self.beta + x


class Block(nn.Module):
    """A block of ConvNeXt V2 behind a stem, and a head. (N, 3, H, W) -> (N, 5)."""

    def __init__(self, norm: Norm, hidden: int = 11) -> None:
        super().__init__()
        self.last = norm is not First
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 2, 2), norm(hidden), nn.Linear(6, 5)
        kind = nn.Linear if self.last else lambda a, b: nn.Conv2d(a, b, 1)
        self.up, self.down = kind(6, hidden), kind(hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.permute(0, 2, 3, 1) if self.last else x
        y = self.down(self.norm(F.gelu(self.up(y))))
        return self.head((x + (y.permute(0, 3, 1, 2) if self.last else y)).mean((2, 3)))


def made(norm: Norm) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block(norm).double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)


def kill(net: Block, units: list[int]) -> None:
    with torch.no_grad():
        net.up.weight[units], net.up.bias[units] = 0, 0


@pytest.mark.parametrize(("norm", "form"), [(Last, "module"), (First, "module"), (Written, "graph")])
def test_dead_units_go_and_the_others_are_normed_as_before(norm: Norm, form: str, tmp_path: Path) -> None:
    net, x = made(norm)
    fresh = copy.deepcopy(net)
    kill(net, [0, 3, 10])
    small, report = compact(net, x)
    assert report.form == form
    assert not report.rolled_back
    assert small.up.weight.shape[0] == small.down.weight.shape[1] == 8
    assert all(p.numel() == 8 for p in small.norm.parameters())
    for batch in (x, torch.randn(5, 3, 6, 6, dtype=torch.float64) * 20):
        assert (net(batch) - small(batch)).abs().max() < 1e-12 * net(batch).abs().max()
    pr.save(small, tmp_path / "small.safetensors")
    assert torch.equal(pr.load(fresh, tmp_path / "small.safetensors")(x), small(x))


def test_units_that_live_only_in_the_mean_stay() -> None:
    net, x = made(Last)
    with torch.no_grad():
        net.down.weight[:, [1, 2]] = 0
    small, _ = compact(net, x)
    assert small.up.weight.shape[0] == 11
    assert torch.equal(small(x), net(x))


@pytest.mark.parametrize("norm", [Last, First, Written])
def test_gates_close_what_removal_then_takes(norm: Norm) -> None:
    net, x = made(norm)
    before = sum(p.numel() for p in net.parameters())
    hidden = next(row for row in pr.groups(net, x) if row.layers == ("up",))
    assert hidden.gateable
    assert hidden.gates == ("up",)
    small, _ = pr.prune(net, [x], lambda net, x: net(x).square().mean(), to=pr.Budget(params=0.75), epochs=0)
    assert before * 0.66 < sum(p.numel() for p in small.parameters()) <= before * 0.75
    assert small.up.weight.shape[0] < 11
