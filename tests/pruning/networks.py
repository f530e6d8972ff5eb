"""Small networks with data, for tests of pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A stem, a block, a depthwise convolution and a classifier; (N, 2, 6, 6) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.bn_a = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.bn_b = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.bn_deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.point, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn_b(self.b(F.relu(self.bn_a(self.a(x))))))
        x = F.relu(self.point(F.relu(self.bn_deep(self.deep(x)))))
        return self.fc(x.mean((2, 3)))


def mlp() -> nn.Sequential:
    """(N, 5) -> (N, 3)."""
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def batches(shape: tuple[int, ...], count: int = 4, size: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Pairs whose classes a network can learn."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(3, *shape, generator=generator)
    found = []
    for _ in range(count):
        x = torch.randn(size, *shape, generator=generator)
        found.append((x, torch.einsum("n...,c...->nc", x, rule).argmax(1)))
    return found


class Auxiliary(nn.Module):
    """A second head that answers in train mode alone, and an attribute that keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = nn.Linear(5, 24), nn.Linear(24, 32)
        self.head, self.aux = nn.Linear(32, 3), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Any:
        self.seen = [torch.relu(self.front(x))]
        answer = self.head(torch.relu(self.back(self.seen[0])))
        return (answer, self.aux(self.seen[0])) if self.training else answer


class Shuffled:
    """The same batches in another order in each pass, drawn from torch's global generator."""

    def __init__(self, found: list[tuple[Tensor, Tensor]]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in torch.randperm(len(self.found)).tolist():
            yield self.found[number]


def seeded(make: Any, seed: int = 0) -> Any:
    """`make()` after seeding, with norms whose statistics are not their first ones."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net
