"""Tiny networks of every sort that a file can hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from paring.removal import compact


class Tied(nn.Module):
    """An embedding whose weights are the head's, and state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight
        self.free = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.words(x))
        return found


class Written(nn.Module):
    """A forward with a size in it, which only the graph form can make smaller; its input comes in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, pair: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
        x, y = pair
        hidden = torch.relu(self.first(x) + y.sum()).view(-1, 2, 3).reshape(-1, 6)
        found: Tensor = self.last(hidden * scale)
        return found


@dataclass(frozen=True)
class Example:
    """A network to write, the factory to read it with, and what reading costs against the others."""

    name: str
    net: nn.Module
    factory: Callable[[], nn.Module]
    weight: float = 1.0


@cache
def examples() -> tuple[Example, ...]:
    """Networks that were made smaller, with fixed weights. They are made once: nobody changes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            Example("plain", _thinned(_conv(), torch.randn(2, 1, 6, 6)), _conv),
            Example("selected", _selected(), _dense),
            Example("tied", Tied().eval(), Tied),
            Example("mixed", _mixed(), Mixed, 0.3),
            Example("graph", _graph(), Written, 0.1),
        )


class Mixed(nn.Module):
    """A grouped convolution, a recurrent layer, and a branch beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rows = nn.Conv1d(4, 6, 1, groups=2), nn.GRU(6, 5, batch_first=True)
        self.beside, self.out = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(self.conv(x).transpose(1, 2))[0]
        made: Tensor = self.out(h + self.beside(h))
        return made


def _mixed() -> nn.Module:
    net = Mixed().eval()
    dead = {"conv": slice(0, 6, 3), "rows": slice(10, 12), "beside": slice(0, 5)}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if (path := name.partition(".")[0]) in dead:
                parameter[dead[path]] = 0
    return compact(net, torch.randn(2, 4, 3))[0]


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3, bias=False), nn.PReLU(3)
    )


def _dense() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def _thinned(net: nn.Module, x: Tensor, drop_inputs: bool = False) -> nn.Module:
    net.eval()
    first = net.get_submodule("0").weight
    assert isinstance(first, Tensor)
    with torch.no_grad():
        first[:1] = 0
    return compact(net, x, verify=False, drop_inputs=drop_inputs)[0]


def _selected() -> nn.Module:
    net = _dense()
    with torch.no_grad():
        next(net.parameters())[:, :3] = 0
    return _thinned(net, torch.randn(2, 8), drop_inputs=True)


def _graph() -> nn.Module:
    net = Written().eval()
    with torch.no_grad():
        net.first.weight[:3], net.first.bias[:3] = 0, -10
    return compact(net, ((torch.randn(2, 4), torch.zeros(2, 1)), 1.0), verify=False, form="graph")[0]
