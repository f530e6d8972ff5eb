"""Heads that are mixed by a linear layer over heads (CaiT): a gate is offered only where what it closes then goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import paring as pr
from paring.analysis.unit_groups import UNEVEN

HEADS, SIZE = 4, 3


class Talking(nn.Module):
    """Scores are mixed over heads before the softmax, and after it. fused: one layer makes queries, keys and values."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        inner = HEADS * SIZE
        self.heads = HEADS
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.qkv = nn.Linear(8, 3 * inner) if fused else None
        self.parts = None if fused else nn.ModuleList(nn.Linear(8, inner) for _ in range(3))
        self.before, self.after, self.proj = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS), nn.Linear(inner, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sin()
        b, t, _ = x.shape
        if self.qkv is not None:
            q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            assert self.parts is not None
            q, k, v = (f(x).reshape(b, t, -1, SIZE).transpose(1, 2) for f in self.parts)
        scores = q @ k.transpose(-2, -1)
        weights = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        weights = self.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.proj((weights @ v).transpose(1, 2).reshape(b, t, -1)))


def made(*, fused: bool) -> tuple[Talking, Tensor]:
    torch.manual_seed(0)
    return Talking(fused=fused).double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)


def test_values_beside_queries_that_stay_have_no_gate() -> None:
    net, x = made(fused=True)
    values = next(row for row in pr.groups(net, x) if "after" in row.layers)
    assert values.reason == UNEVEN


def test_values_of_their_own_have_one_and_what_it_closes_goes() -> None:
    net, x = made(fused=False)
    values = next(row for row in pr.groups(net, x) if "after" in row.layers)
    assert values.gateable
    dense = sum(p.numel() for p in net.parameters())
    left = dense - 2 * values.parameters
    small, _ = pr.prune(
        net,
        [x],
        lambda net, x: net(x).square().mean(),
        to=pr.Budget(params=left / dense + 1e-6),
        at="units:after",
        epochs=0,
    )
    assert sum(p.numel() for p in small.parameters()) == left
    assert small.parts[2].out_features == small.proj.in_features == (HEADS - 2) * SIZE
