"""Parameters that several modules share: they stay shared, and whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.removal import compact
from tests.removal.test_compact import gap


class Words(nn.Module):
    """A language model whose head is its embedding, with a hidden layer that can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.emb(x)
        return self.head(self.norm(h + self.down(torch.relu(self.up(h)))))


def test_a_head_that_is_the_embedding_stays_so() -> None:
    net = Words().double().eval()
    with torch.no_grad():
        net.up.weight[:5], net.up.bias[:3], net.up.bias[3:5] = 0, -1, 1
        net.emb.weight[:, 0] = 0
    x = torch.randint(0, 11, (2, 6))
    for inplace in (False, True):
        small, report = compact(net, x, inplace=inplace)
        assert small.head.weight is small.emb.weight
        assert [row.after for row in report.rows] == [8, 7, 8, 11]
        assert not report.rolled_back
        twin = Words().double()
        twin.up, twin.down = nn.Linear(8, 7).double(), nn.Linear(7, 8).double()
        twin.load_state_dict(small.state_dict())
        assert gap(twin, small, torch.randint(0, 11, (3, 6))) < 1e-12


def test_a_weight_of_two_convolutions_is_kept_with_the_reason() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(12, 2, 1)
            self.b.weight = self.a.weight
            self.first = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.out(torch.cat([self.a(h), self.b(-h)], 1))

    net = Siamese().double()
    with torch.no_grad():
        net.a.weight[:2], net.a.bias[:2] = 0, 0  # dead in one, a constant in the other
        net.first.weight[0], net.first.bias[0] = 0, 0
    x = torch.randn(2, 3, 6, 6).double()
    small, report = compact(net, x)
    assert small.a.weight is small.b.weight
    rows = {row.layer: row for row in report.rows}
    assert rows["a"].kept == {"'a.weight' is tied to 'b.weight'": 2}
    assert rows["b"].kept == {"'b.weight' is tied to 'a.weight'": 2}
    assert rows["first"].kept == {"read by a shared layer: 'a.weight' is tied to 'b.weight'": 1}
    assert gap(net, small, x) < 1e-10


def test_a_bias_of_two_norms_and_a_slope_used_twice_stay() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.m, self.n = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.n.bias = self.m.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.n(self.b(torch.relu(self.m(self.a(x)))))))

    net = Shared().double().eval()
    with torch.no_grad():
        net.m.weight[:2], net.n.weight[1:3] = 0, 0
    x = torch.randn(2, 3, 6, 6).double()
    small, report = compact(net, x)
    assert small.m.bias is small.n.bias
    assert [row.after for row in report.rows] == [4, 4, 2]
    assert all("is tied to" in reason for row in report.rows[:2] for reason in row.kept)
    assert gap(net, small, x) < 1e-10
