"""Parameters and buffers outside of layers that run along units are cut with them, and say so where they cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.analysis import wiring
from paring.core import Inputs, release
from paring.cost import CostModel
from paring.pruning.gated import GatedCopy
from paring.removal import compact
from paring.testing import difference

F64 = torch.float64


class Scaled(nn.Module):
    """A residual block whose stream or branch is multiplied by something per channel, in the ways that occur."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)
        self.gain, self.wide = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("mean", torch.rand(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)

    def scale(self, y: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.variance, Tensor)
        if self.way == "frozen norm":
            scale = self.gain * (self.variance + 1e-5).rsqrt()
            shift = self.wide.view(-1) - self.mean * scale
            return y * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        ways: dict[str, Callable[[], Tensor]] = {
            "index": lambda: y * self.gain[None, :, None, None],
            "view": lambda: y * self.gain.view(1, -1, 1, 1),
            "written size": lambda: y * self.gain.view(1, 8, 1, 1),
            "wide": lambda: y * self.wide,
            "function": lambda: y * (1 + self.gain.sigmoid().view(1, -1, 1, 1)),
            "divisor": lambda: y / self.wide,
            "in place": lambda: y.clone().mul_(self.gain.view(1, -1, 1, 1)),
            "addcmul": lambda: torch.addcmul(self.mean.view(1, -1, 1, 1), y, self.wide),  # type: ignore[operator]
            "twice": lambda: y * self.gain[:, None, None] * self.gain.view(1, -1, 1, 1),
            "order": lambda: y * self.gain.flip(0)[:, None, None],
            "sum": lambda: y * self.gain[:, None, None] * self.gain.sum(),
            "normed": lambda: y * (self.gain / self.gain.norm())[:, None, None],
        }
        return ways[self.way]()

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.scale(self.a(x)))
        return self.out(F.relu(self.c(y + self.b(y))))


class Window(nn.Module):
    """Attention with a table of relative positions, a mask that is shifted, or a temperature per head."""

    def __init__(self, *, fused: bool = True, mask: bool = False, cosine: bool = False, t: int = 5, h: int = 4) -> None:
        super().__init__()
        self.fused, self.mask, self.cosine, self.h = fused, mask, cosine, h
        self.qkv, self.proj, self.out = nn.Linear(6, 3 * h * 2), nn.Linear(2 * h, 5), nn.Linear(5, 2)
        self.table, self.temperature = nn.Parameter(torch.randn(2 * t - 1, h)), nn.Parameter(torch.rand(h, 1, 1))
        at = torch.arange(t)
        self.register_buffer("index", at[:, None] - at[None] + t - 1)
        self.register_buffer("shifted", torch.where(torch.rand(1, t, t) > 0.8, -100.0, 0.0))

    def forward(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        assert isinstance(self.index, Tensor)
        assert isinstance(self.shifted, Tensor)
        q, k, v = self.qkv(x).reshape(b, t, 3, self.h, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.mask:
            bias = bias + self.shifted.view(1, 1, t, t).expand(b, self.h, -1, -1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            if self.cosine:
                scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
                scores = scores * torch.clamp(self.temperature, max=4.6).exp()
            else:
                scores = (q * 2**-0.5) @ k.transpose(-2, -1)
            y = (scores + bias).softmax(-1) @ v
        return self.out(F.relu(self.proj(y.transpose(1, 2).reshape(b, t, -1))))


def cut(net: nn.Module, x: Tensor, seed: int) -> tuple[GatedCopy, Tensor, nn.Module, Any]:
    """Half of the gates shut, at least one open each, and what is left."""
    torch.manual_seed(seed)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    mask = torch.cat([torch.arange(size) == 0 for size in gated.sizes]) | (torch.rand(gated.units) > 0.5)
    gated.set(mask.double())
    bare = copy.deepcopy(gated.net)
    release(bare)
    return gated, mask, *compact(bare, x)


CUT = ("index", "view", "written size", "wide", "function", "divisor", "in place", "addcmul", "frozen norm", "twice")


@pytest.mark.parametrize("way", CUT)
@pytest.mark.parametrize("seed", range(3))
def test_what_runs_along_channels_is_cut_with_them(way: str, seed: int) -> None:
    torch.manual_seed(seed)
    net, x = Scaled(way).double().eval(), torch.randn(2, 3, 6, 6, dtype=F64)
    assert [row.gateable for row in pr.groups(net, x)] == [True, True, False]
    gated, mask, small, report = cut(net, x, seed)
    assert not report.rolled_back
    assert report.form == ("graph" if way == "written size" else "module")
    assert difference(small, gated.net, x) < 1e-9
    left = int(mask[:8].sum())
    used = {"frozen norm": ("gain", "wide"), "addcmul": ("wide",), "wide": ("wide",), "divisor": ("wide",)}
    for name in used.get(way, ("gain",)):
        assert small.get_parameter(name).numel() == left
    assert small.get_parameter("a.weight").shape[0] == left
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)


@pytest.mark.parametrize("way", ["order", "sum", "normed"])
def test_what_mixes_channels_keeps_them_and_says_so(way: str) -> None:
    torch.manual_seed(0)
    net, x = Scaled(way).double().eval(), torch.randn(2, 3, 6, 6, dtype=F64)
    first = next(iter(pr.groups(net, x)))
    assert "cannot shrink" in first.reason
    gated, _, small, report = cut(net, x, 0)
    assert difference(small, gated.net, x) < 1e-9
    assert not report.rolled_back
    assert small.get_parameter("gain").shape == (8,)


@pytest.mark.parametrize(
    "kwargs", [{}, {"t": 4}, {"fused": False}, {"mask": True}, {"fused": False, "cosine": True}], ids=str
)
@pytest.mark.parametrize("seed", range(2))
def test_tables_of_positions_lose_heads(kwargs: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    net, x = Window(**kwargs).double().eval(), torch.randn(2, kwargs.get("t", 5), 6, dtype=F64)
    assert [row.gateable for row in pr.groups(net, x)] == [True, True, False]
    gated, mask, small, report = cut(net, x, seed)
    assert not report.rolled_back
    assert difference(small, gated.net, x) < 1e-9
    heads = int(mask[:4].sum())
    assert small.get_parameter("qkv.weight").shape[0] == 6 * heads
    assert small.get_parameter("table").shape[1] == heads
    assert small.get_parameter("temperature").shape[0] == (heads if kwargs.get("cosine") else 4)
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)


def test_dead_channels_by_their_scale_go() -> None:
    torch.manual_seed(0)
    net, x = Scaled("view").double().eval(), torch.randn(2, 3, 6, 6, dtype=F64)
    net.gain.data[:3], net.b.weight.data[:3] = 0, 0
    assert net.b.bias is not None
    net.b.bias.data[:3] = 0
    small, _ = compact(net, x)
    assert small.get_parameter("gain").shape == (5,)
    assert difference(small, net, x) < 1e-12


def test_classes_and_positions_are_cut_with_a_stream_that_is_dead() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down, self.head = (nn.Linear(a, b) for a, b in ((6, 8), (8, 9), (9, 8), (8, 3)))
            self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))

        def forward(self, x: Tensor) -> Any:
            h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.place
            return self.head(h + self.down(F.gelu(self.up(h))))

    torch.manual_seed(0)
    net, x = Stream().double().eval(), torch.randn(2, 4, 6, dtype=F64)
    for part in (net.token, net.place):
        part.data[..., :3] = 0
    for layer in (net.embed, net.down):
        layer.weight.data[:3], layer.bias.data[:3] = 0, 0
    small, _ = compact(net, x)
    assert small.get_parameter("token").shape == (1, 1, 5)
    assert small.get_parameter("place").shape == (1, 5, 5)
    assert difference(small, net, x) < 1e-12


def test_they_are_counted_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Scaled("view").double().eval(), torch.randn(2, 3, 6, 6, dtype=F64)
    found = wiring(net, x)
    assert [(norm.name, norm.kind, norm.parameters) for norm in found.norms] == [("gain", "parameter", 1)]
    assert [part.name for part in found.parts] == ["a", "b", "c", "out"]
    assert int(CostModel.of(net, found)().parameters) == sum(p.numel() for p in net.parameters())
    gated, _, small, _ = cut(net, x, 0)
    pr.save(small, tmp_path / "small.safetensors")
    again = pr.load(Scaled("view").double(), tmp_path / "small.safetensors")
    assert difference(again, gated.net, x) < 1e-9


@pytest.mark.parametrize("method", [pr.L0(3e-2), pr.Stack(pr.L0(3e-2), pr.Shrink(every=1))])
def test_a_network_with_layer_scale_trains_and_shrinks(method: Any) -> None:
    torch.manual_seed(0)
    net, x = Scaled("view"), torch.randn(6, 3, 6, 6)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    run = pr.attach(net, method, example=x, optimizer=opt, steps=4)
    for _ in range(4):
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    small = run.finish()
    assert difference(small, net, x) < 1e-5


def test_a_table_that_a_module_remembers_keeps_its_heads() -> None:
    """In eval mode some keep the looked-up table: then it is no parameter any more, and nothing would cut it."""

    class Remembers(Window):
        def __init__(self) -> None:
            super().__init__()
            self.looked_up: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Any:
            b, t, _ = x.shape
            assert isinstance(self.index, Tensor)
            bias = self.looked_up.setdefault("cpu", self.table[self.index].permute(2, 0, 1))
            q, k, v = self.qkv(x).reshape(b, t, 3, self.h, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.out(F.relu(self.proj(y.transpose(1, 2).reshape(b, t, -1))))

    net, x = Remembers().double().eval(), torch.randn(2, 5, 6, dtype=F64)
    with torch.no_grad():
        net(x)
    rows = list(pr.groups(net, x))
    assert [row.gateable for row in rows] == [False, True, False]
    assert "cannot shrink" in rows[0].reason
