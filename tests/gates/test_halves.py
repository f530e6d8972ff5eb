"""Gated linear units whose halves come out of one layer: gated once, on one half, and removed as both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.analysis import wiring
from paring.core import Inputs, release
from paring.gates import sites
from paring.pruning.gated import GatedCopy
from paring.removal import compact
from paring.testing import difference

F64 = torch.float64
Halves = Callable[[Tensor], Any]
WAYS: dict[str, Halves] = {
    "chunk": lambda h: h.chunk(2, -1),
    "split": lambda h: h.split([6, 6], -1),
    "slices": lambda h: (h[..., :6], h[..., 6:]),
    "unbind": lambda h: h.view(*h.shape[:-1], 2, 6).unbind(-2),
    "unflatten": lambda h: h.unflatten(-1, (2, 6)).unbind(-2),
}


class Fused(nn.Module):
    def __init__(self, way: str, act: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__()
        self.wi, self.wo, self.way, self.act = nn.Linear(5, 12), nn.Linear(6, 3), way, act

    def forward(self, x: Tensor) -> Tensor:
        a, b = WAYS[self.way](self.wi(x))
        out: Tensor = self.wo(self.act(a) * b)
        return out


class SimpleGate(nn.Module):
    """Channels halved behind a depthwise convolution and multiplied, as in NAFNet, with its channel attention."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.stem, self.wide, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 1), norm(12)
        self.deep, self.weigh = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(6, 6, 1)
        self.back, self.out = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.deep(self.norm(self.wide(x))).chunk(2, 1)
        h = a * b
        out: Tensor = self.out(x + self.back(h * self.weigh(h.mean((2, 3), keepdim=True))))
        return out


class Beside(nn.Module):
    """A fused unit in a network with attention elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.unit, self.out = nn.Linear(5, 24), nn.Linear(8, 5), Fused("chunk"), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 8)
        out: Tensor = self.out(self.unit(x + self.proj(y)))
        return out


def closed(net: nn.Module, x: Tensor, seed: int = 0) -> tuple[GatedCopy, Tensor, Any]:
    """Half of the gates of a network shut, at least one open each; what is left of it, and the report."""
    torch.manual_seed(seed)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    mask = torch.cat([torch.arange(size) == 0 for size in gated.sizes]) | (torch.rand(gated.units) > 0.5)
    gated.set(mask.double())
    cut = copy.deepcopy(gated.net)
    release(cut)
    return gated, mask, compact(cut, x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", [F.silu, torch.sigmoid, F.gelu])
def test_one_gate_acts_on_one_half(way: str, act: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Fused(way, act).double().eval(), torch.randn(2, 4, 5, dtype=F64)
    (site,) = sites(net, wiring(net, x), "units")
    (mount,) = site.mounts
    assert site.shape == (6,)
    assert mount.index == (*[-1] * 6, *range(6))  # b, whose zero stays zero
    gated, mask, (small, report) = closed(net, x)
    assert not report.rolled_back
    assert difference(small, gated.net, x) < 1e-12
    assert small.get_parameter("wi.weight").shape == (2 * int(mask.sum()), 5)
    assert small.get_parameter("wo.weight").shape == (3, int(mask.sum()))


def test_the_gate_multiplies_once() -> None:
    torch.manual_seed(0)
    net, x = Fused("chunk").double().eval(), torch.randn(2, 5, dtype=F64)
    a, b = net.wi(x).chunk(2, -1)
    z = torch.rand(6, dtype=F64)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    gated.set(z)
    assert torch.allclose(gated.net(x), net.wo(F.silu(a) * b * z), atol=1e-12)


@pytest.mark.parametrize(
    "make", [Beside, SimpleGate, lambda: SimpleGate(nn.BatchNorm2d), lambda: SimpleGate(lambda n: nn.GroupNorm(4, n))]
)
@pytest.mark.parametrize("seed", range(3))
def test_networks_with_halves_lose_what_is_closed(make: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net = make().double().eval()
    x = torch.randn(2, 4, 5, dtype=F64) if isinstance(net, Beside) else torch.randn(2, 3, 6, 6, dtype=F64)
    free = [row.layers for row in pr.groups(net, x) if row.gateable]
    halved = [("qkv",), ("unit.wi",), ("unit.wo",)]
    assert free == (halved if isinstance(net, Beside) else [("stem", "back"), ("wide", "deep", "weigh")])
    gated, mask, (small, report) = closed(net, x, seed)
    assert not report.rolled_back
    assert difference(small, gated.net, x) < 1e-12
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)


@pytest.mark.parametrize("seed", range(2))
def test_halves_that_meet_others_are_gated_where_all_of_them_are(seed: int) -> None:
    """A sum of two layers is sliced: the slice shows the rows of one of them, and the other is gated as well."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            left, right = (self.a(x) + self.b(x)).chunk(2, -1)
            out: Tensor = self.out(F.silu(left) * right)
            return out

    torch.manual_seed(seed)
    net, x = Sum().double().eval(), torch.randn(2, 5, dtype=F64)
    gated, mask, (small, _) = closed(net, x, seed)
    assert difference(small, gated.net, x) < 1e-12
    assert small.get_parameter("a.weight").shape == small.get_parameter("b.weight").shape == (2 * int(mask.sum()), 5)


class CrossCovariance(nn.Module):
    """Attention of channels to channels, as in XCiT and EdgeNeXt."""

    def __init__(self, normal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)
        self.temperature, self.normal = nn.Parameter(torch.ones(4, 1, 1)), normal

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 4, 1)
        if self.normal:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1) @ v
        out: Tensor = self.head(self.out(y.permute(0, 3, 1, 2).reshape(b, n, c)))
        return out


@pytest.mark.parametrize("normal", [True, False])
def test_cross_covariance_says_why_its_heads_stay(normal: bool) -> None:
    net, x = CrossCovariance(normal).double().eval(), torch.randn(2, 5, 8, dtype=F64)
    rows = list(pr.groups(net, x))
    assert all(row.reason for row in rows if row.layers == ("qkv",))
    assert [row.gateable for row in rows if row.layers == ("out",)] == [True]
    gated, _, (small, _) = closed(net, x)
    assert difference(small, gated.net, x) < 1e-12
