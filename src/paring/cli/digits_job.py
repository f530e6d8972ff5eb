"""A job of `paring prune`: what is pruned, on which data, and how well it does.

    paring prune job.py --macs 0.5 --epochs 5

It runs as it is, on 8x8 digits with a small network that is trained on the spot. Put your own in its place.
Only net() and batches() are needed; delete what you do not want.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paring.data import load

DATA = load("digits", validation=300)
Batch = Sequence[Tensor]


def net() -> nn.Module:
    """The trained network. Yours comes from a file: build it, then net.load_state_dict(torch.load(...))."""
    found = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.AdamW(found.parameters(), lr=3e-3)
    for _ in range(4):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(found(x), y).backward()
            optimizer.step()
    return found


def batches() -> DataLoader[tuple[Tensor, ...]]:
    """Training data. It is gone through several times: a DataLoader or a list, not a generator."""
    return DataLoader(TensorDataset(DATA.train.x, DATA.train.y), batch_size=64, shuffle=True)


def validate() -> list[Batch]:
    """Held-out batches: the loss that is reported is the mean over these. Nothing is chosen by it."""
    return [(DATA.validation.x, DATA.validation.y)]


def metric(net: nn.Module) -> float:
    """What you judge a network by, reported before and after. Here the accuracy on held-out digits, in percent."""
    with torch.no_grad():
        right = net(DATA.validation.x).argmax(1) == DATA.validation.y
    return 100 * float(right.float().mean())


# The loss, a scalar, when it is not cross-entropy for pairs of an input and labels, nor net(**batch).loss for mappings.
# def loss(net: nn.Module, batch: Batch) -> Tensor:
#     x, y = batch
#     return F.mse_loss(net(x), y)

# What the network takes, when it is not what loss() calls it with: a tensor, a tuple or a mapping of arguments.
# def example() -> Tensor:
#     return DATA.train.x[:2]

# How it is trained after the cut. The learning rate here is the highest one: it warms up, then falls to zero.
# def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
#     return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
