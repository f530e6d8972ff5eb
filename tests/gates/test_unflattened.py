"""A linear layer whose units are the pixels of channels, as generators and decoders begin: one gate for each channel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import Inputs, release
from paring.pruning.gated import GatedCopy
from paring.removal import compact

CHANNELS, SIDE = 6, 3
PIXELS = CHANNELS * SIDE * SIDE


def _unflattened() -> nn.Module:
    return nn.Sequential(nn.Linear(5, PIXELS), nn.ReLU(), nn.Unflatten(1, (CHANNELS, SIDE, SIDE)), *_rest())


def _norm_behind() -> nn.Module:
    shape = nn.Unflatten(1, (CHANNELS, SIDE, SIDE))
    return nn.Sequential(nn.Linear(5, PIXELS), shape, nn.BatchNorm2d(CHANNELS), nn.ReLU(), *_rest())


def _norm_before() -> nn.Module:
    shape = nn.Unflatten(1, (CHANNELS, SIDE, SIDE))
    return nn.Sequential(nn.Linear(5, PIXELS), nn.BatchNorm1d(PIXELS), nn.ReLU(), shape, *_rest())


def _upwards() -> nn.Module:
    shape = nn.Unflatten(1, (CHANNELS, SIDE, SIDE))
    return nn.Sequential(nn.Linear(5, PIXELS), shape, nn.ConvTranspose2d(CHANNELS, 4, 2, stride=2), nn.Conv2d(4, 2, 1))


def _rest() -> list[nn.Module]:
    return [nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)]


class Viewed(nn.Module):
    """Its forward says the sizes of a channel, and that the channels are the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(5, PIXELS), nn.Sequential(*_rest())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(x).view(-1, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2).relu())
        return out


@pytest.mark.parametrize("make", [_unflattened, _norm_behind, _norm_before, _upwards, Viewed])
def test_a_closed_channel_is_zero_and_leaves(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = make().double().eval(), torch.randn(3, 5, dtype=torch.float64)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for held in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert held is not None
                held.data.uniform_(0.5, 1.5)
    first = next(name for name, module in net.named_modules() if isinstance(module, nn.Linear))
    row = next(row for row in pr.groups(net, x) if first in row.layers)
    assert (row.units, row.reason) == (CHANNELS, "")
    gated = GatedCopy.of(net, Inputs((x,)), f"units:{first}")
    stays = torch.tensor([True, False, True, True, False, True])
    gated.set(stays)
    naive = copy.deepcopy(net)
    reader = next(m for m in naive.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    reader.register_forward_pre_hook(lambda _, args: args[0] * stays.view(-1, 1, 1))
    torch.testing.assert_close(gated.net(x), naive(x), rtol=0, atol=1e-12)
    assert bool(((net(x) - naive(x)).abs() > 0.01).any())
    closed = copy.deepcopy(gated.net)
    release(closed)
    small, _ = compact(closed, x)
    torch.testing.assert_close(small(x), naive(x), rtol=0, atol=1e-12)
    left = sum(p.numel() for p in small.parameters())
    assert left == int(gated.cost(stays).parameters) == sum(p.numel() for p in net.parameters()) - 2 * row.parameters
    assert small.get_submodule(first).weight.shape == (4 * SIDE * SIDE, 5)
