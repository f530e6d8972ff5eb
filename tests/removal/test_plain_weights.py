"""Weights that a forward computes become parameters, and the layers ordinary ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import paring as pr
from paring.removal import plain_weights
from paring.testing import difference, is_stock

F64 = torch.float64


class Standardised(nn.Conv2d):
    """Its weight has mean 0 and variance 1 in each filter, times a gain, as in NFNets."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, self.gain * 0.3, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, None if self.bias is None else self.bias + 1)


class Padding(nn.Conv2d):
    """Does more than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight * 2, self.bias)


class Unused(nn.Conv2d):
    """Keeps a padding that its forward does not use."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias)


def tower(last: nn.Module | None = None) -> nn.Module:
    layers = [Standardised(3, 8, 3, padding=1), nn.GELU(), Standardised(8, 6, 3), nn.ReLU()]
    return nn.Sequential(*layers, last or nn.Identity(), nn.Flatten(), Doubled(96, 4)).double()


@pytest.mark.parametrize("training", [True, False])
def test_the_same_function_of_stock_layers(training: bool) -> None:
    torch.manual_seed(0)
    net, x = tower().train(training), torch.randn(2, 3, 6, 6, dtype=F64)
    before = copy.deepcopy(net.state_dict())
    plain = plain_weights(net, x)
    assert is_stock(plain)
    assert plain.training == training
    assert difference(plain, net, x) < 1e-12
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert type(net.get_submodule("0")) is Standardised
    weight = net.get_parameter("0.weight")
    mean, spread = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), unbiased=False, keepdim=True)
    wanted = (weight - mean) / (spread + 1e-5).sqrt() * 0.3 * net.get_parameter("0.gain").view(-1, 1, 1, 1)
    assert torch.allclose(plain.get_parameter("0.weight"), wanted, atol=1e-12)
    assert torch.equal(plain.get_parameter("6.bias"), net.get_parameter("6.bias") + 1)


def test_then_units_are_gated_and_a_budget_is_met() -> None:
    torch.manual_seed(0)
    net, x = tower().eval(), torch.randn(4, 3, 6, 6, dtype=F64)
    assert "paring.removal.plain_weights makes a parameter of it" in next(iter(pr.groups(net, x))).reason
    plain = plain_weights(net, x)
    assert [row.gateable for row in pr.groups(plain, x)] == [True, True, False]
    small, pruned = pr.prune(plain, [(x, torch.arange(4))], to=pr.Budget(macs=0.5), epochs=0)
    assert pruned.shares["macs"] <= 0.5
    assert small.get_parameter("0.weight").shape[0] < 8


def test_parametrisations_go() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.ReLU(), spectral_norm(nn.Linear(5, 3))).double().train()
    x = torch.randn(2, 4, dtype=F64)
    plain = plain_weights(net, x)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert difference(plain, net, x) < 1e-12


def test_what_does_more_stays_and_what_differs_is_refused() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=F64)
    plain = plain_weights(tower(Padding(6, 6, 3)), x)
    assert type(plain.get_submodule("4")) is Padding
    assert type(plain.get_submodule("0")) is nn.Conv2d
    with pytest.raises(
        ValueError, match=r"with plain weights this Sequential fails with .* one of 0, 2, 4\.1, 6 keeps a stride"
    ):
        plain_weights(tower(nn.Sequential(nn.ZeroPad2d(1), Unused(6, 6, 3, padding=1))).double(), x)


def test_a_network_without_any_is_copied() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    plain = plain_weights(net, torch.randn(2, 3))
    assert plain is not net
    assert torch.equal(plain.get_parameter("0.weight"), net.get_parameter("0.weight"))
