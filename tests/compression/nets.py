"""Small trained networks and their data for the compressors' tests."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.compression import Objective, Training
from paring.compression.training import Descent


class Tied(nn.Module):
    """Embedding, convolution, BatchNorm, and an output layer that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 10)
        self.conv = nn.Conv1d(10, 10, 3, padding=1)
        self.norm = nn.BatchNorm1d(10)
        self.out = nn.Linear(10, 12, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv(self.words(x).transpose(1, 2))).relu()
        found: Tensor = self.out(hidden.mean(2))
        return found


def mlp_data() -> tuple[Tensor, Tensor]:
    """Two classes of signs of a product and a sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    return x, (x[:, :4].sum(1) > 0).long() + 2 * (x[:, 4] + x[:, 5] > 0).long()


def tied_data() -> tuple[Tensor, Tensor]:
    """Sequences of words, and the word that comes most often."""
    x = torch.randint(12, (300, 9), generator=torch.Generator().manual_seed(1))
    return x, F.one_hot(x, 12).sum(1).argmax(1)


def problem(x: Tensor, y: Tensor, lr: float = 1e-2) -> tuple[Objective, Objective, Training]:
    """Loss and error on half of the data, training on all of it."""
    half = len(x) // 2
    loss = Objective.of(F.cross_entropy, x[:half], y[:half])
    error = Objective.of(lambda out, answers: (out.argmax(1) != answers).double().mean(), x[:half], y[:half])
    return loss, error, Training.of(F.cross_entropy, x, y, batch=50, lr=lr)


@functools.cache
def trained(kind: str) -> nn.Module:
    """A trained network: "mlp" or "tied"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module
        if kind == "mlp":
            net, data = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4)), mlp_data()
        else:
            net, data = Tied(), tied_data()
        training = problem(*data)[2]
        Descent(training, list(net.parameters()), 12).run(net)
    return net


def task_of(kind: str) -> tuple[nn.Module, Objective, Objective, Training]:
    """A trained network with loss, error and training."""
    return trained(kind), *problem(*(mlp_data() if kind == "mlp" else tied_data()))


def exactly(net: nn.Module) -> Objective:
    """0 for the very weights of a network, 1 for any others."""
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def loss(one: nn.Module, _: object) -> Tensor:
        other = any(not torch.equal(value, start[name]) for name, value in one.state_dict().items())
        return float(other) + 0 * torch.stack([p.sum() for p in one.parameters()]).sum()  # with a gradient, of zero

    return Objective(loss, [None])
