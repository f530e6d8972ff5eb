"""Attention that reads the weight of a layer without calling it, with a bias joined of parts (BEiT, EVA02, Swin v2)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import Inputs, release
from paring.pruning.gated import GatedCopy
from paring.removal import compact

HEADS, SIZE, WIDTH = 3, 4, 6
INNER = HEADS * SIZE
Kind = Literal["buffer", "zeros", "cosine", "turned"]
kinds = pytest.mark.parametrize("kind", ["buffer", "zeros", "cosine", "turned"])


class Borrowed(nn.Module):
    """buffer: keys have a bias of zeros that is never saved. zeros: one that is made of that of the values.

    cosine: attention by angles, with a temperature and a table of positions for each head. turned: pairs of neighbours are
    turned by an angle for each position.
    """

    def __init__(self, kind: Kind, *, whole: bool = False) -> None:
        super().__init__()
        self.kind, self.sizes = kind, (INNER if whole else -1)
        self.stem, self.qkv, self.proj = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3 * INNER, bias=False),
            nn.Linear(INNER, 3),
        )
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(INNER)), nn.Parameter(torch.randn(INNER))
        self.register_buffer("k_bias", torch.zeros(INNER), persistent=False)
        self.logit_scale = nn.Parameter(torch.rand(HEADS, 1, 1)) if kind == "cosine" else None
        self.positions = nn.Linear(2, HEADS, bias=False) if kind == "cosine" else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        middle = torch.zeros_like(self.v_bias) if self.kind == "zeros" else self.k_bias
        bias = torch.cat([self.q_bias, middle, self.v_bias])
        qkv = F.linear(self.stem(x).sin(), self.qkv.weight, bias)
        q, k, v = qkv.reshape(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "turned":
            q, k = _turned(q), _turned(k)
        if self.positions is None or self.logit_scale is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.logit_scale.exp()
            apart = torch.arange(t, dtype=x.dtype)[:, None] - torch.arange(t, dtype=x.dtype)
            table = self.positions(torch.stack([apart, apart.square()], -1)).permute(2, 0, 1)
            y = (scores + table.unsqueeze(0)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, self.sizes))


def _turned(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
    angle = angle.repeat_interleave(2, -1)
    swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * angle.cos() + swapped * angle.sin()


def made(kind: Kind, *, whole: bool = False) -> tuple[Borrowed, Tensor]:
    torch.manual_seed(0)
    return Borrowed(kind, whole=whole).double().eval(), torch.randn(2, 5, 5, dtype=torch.float64)


def halved(kind: Kind, net: nn.Module, x: Tensor) -> tuple[nn.Module, GatedCopy]:
    """Without its second head; and the gated one, with that closed."""
    gated = GatedCopy.of(net, Inputs((x,)), "heads")
    gated.set(torch.tensor([True, False, True]))
    closed = copy.deepcopy(gated.net)
    release(closed)
    return compact(closed, x)[0], gated


@kinds
def test_a_closed_head_is_one_whose_values_are_zero_and_leaves(kind: Kind) -> None:
    net, x = made(kind)
    small, gated = halved(kind, net, x)
    naive = copy.deepcopy(net)
    with torch.no_grad():
        naive.qkv.weight[2 * INNER + SIZE : 2 * INNER + 2 * SIZE] = 0
        naive.v_bias[SIZE : 2 * SIZE] = 0
    assert bool(((net(x) - naive(x)).abs() > 0.01).any())
    torch.testing.assert_close(gated.net(x), naive(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(small(x), naive(x), rtol=0, atol=1e-12)
    left = sum(p.numel() for p in small.parameters())
    assert left == int(gated.cost(gated.gates[0].mask.bool()).parameters)
    head = SIZE * (3 * WIDTH + 2 + 3)  # rows of the three, two biases, columns of what reads it
    assert left == sum(p.numel() for p in net.parameters()) - head - (3 if kind == "cosine" else 0)


@pytest.mark.parametrize("whole", [False, True])
def test_its_file_has_the_buffer_that_no_class_makes_of_this_size(whole: bool, tmp_path: Path) -> None:
    net, x = made("buffer", whole=whole)
    small, _ = halved("buffer", net, x)
    pr.save(small, tmp_path / "small.safetensors")
    again = pr.load(lambda: Borrowed("buffer", whole=whole).double(), tmp_path / "small.safetensors")
    assert dict(again.named_buffers())["k_bias"].shape == (INNER - SIZE,)
    assert torch.equal(again(x), small(x))


def test_a_bias_with_a_part_that_cannot_shrink_keeps_the_heads() -> None:
    class Fixed(Borrowed):
        def forward(self, x: Tensor) -> Tensor:
            bias = torch.cat([self.q_bias, x.new_zeros(INNER), self.v_bias])
            qkv = F.linear(self.stem(x).sin(), self.qkv.weight, bias)
            q, k, v = qkv.reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
            return self.proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))

    net, x = Fixed("buffer").double().eval(), made("buffer")[1]
    row = next(row for row in pr.groups(net, x) if "qkv" in row.layers)
    assert row.reason == "meets a bias that cannot shrink in the network's own forward"
    with torch.no_grad():
        net.proj.weight[:, :SIZE] = 0
    small, _ = compact(net, x)
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)


def test_units_of_a_borrowed_layer_are_gated_where_they_are_read() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.linear(x, self.up.weight, self.up.bias).relu())

    net, x = Hidden().double().eval(), torch.randn(2, 5, dtype=torch.float64)
    (row,) = (row for row in pr.groups(net, x) if row.gateable)
    assert (row.layers, row.gates) == (("up",), ("down",))
    gated = GatedCopy.of(net, Inputs((x,)), "units")
    gated.set(torch.arange(8) > 2)
    with torch.no_grad():
        net.down.weight[:, :3] = 0
    torch.testing.assert_close(gated.net(x), net(x), rtol=0, atol=1e-12)
