"""Where constants move to, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.graph.test_conv_kinds import IMAGE, exact, kill, left
from tests.graph.test_shrink import gap
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from paring.graph import shrink


class Normed(nn.Module):
    """`skip`: a norm reads the layer, and so does somebody else."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.o = (
            nn.Linear(4, 6),
            nn.Linear(6, 5, bias=False),
            nn.BatchNorm1d(5),
            nn.Linear(5, 2),
        )
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.sigmoid(self.a(x)))
        found: Tensor = self.o(self.norm(y) + y if self.skip else self.norm(y))
        return found


@pytest.mark.parametrize("skip", [False, True])
def test_a_running_mean_takes_a_constant_only_where_nobody_but_the_norm_reads_it(skip: bool) -> None:
    net, x = Normed(skip).double().eval(), torch.randn(8, 4).double()
    kill(net.a, [0, 1], 0.7)
    small, report = shrink(net, x)
    assert not report.rolled_back
    assert small.a.out_features == 4
    assert (small.b.bias is not None) == skip
    assert torch.equal(small.norm.running_mean, net.norm.running_mean) == skip
    assert gap(net, small, x) < 1e-12


def test_a_unit_that_nobody_reads_gets_no_constant() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    kill(net[0], [0, 1, 2], 0.5)
    with torch.no_grad():
        net[4].weight.zero_()
    small, report = shrink(net, torch.randn(3, 4).double())
    assert not report.rolled_back
    assert [small[0].out_features, small[2].out_features] == [1, 1]
    assert bool(small[2].bias.isfinite().all())


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_group_that_goes_whole_takes_its_constants_along(kind: type[nn.Conv2d]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    kill(net[0], [0, 1], 0.5)
    with torch.no_grad():
        net[3].weight[:, :3] = 0
    small, report = exact(net, IMAGE)
    assert left(report) == [2, 3, 2]
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (1, 2, 3)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_sizes_of_layers_that_keep_several_groups(kind: type[nn.Conv2d]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), kind(6, 9, 1, groups=3), nn.ReLU(), nn.Conv2d(9, 2, 1)).double().eval()
    kill(net[0], [2, 3], 0.0)
    with torch.no_grad():
        net[3].weight[:, 3:6] = 0
    small, _ = exact(net, IMAGE)
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (2, 4, 6)


def test_layers_whose_weights_are_computed_read_everything() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 2)
    ).eval()
    kill(net[0], [0], 0.0)
    small, report = shrink(copy.deepcopy(net), torch.randn(3, 4))
    assert not report.rolled_back
    assert small[0].out_features == 6


class Choice(nn.Module):
    """Two constants that could stand for the others: one in a sum of two layers, one on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.own = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.near = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.near(torch.cat([self.a(x) + self.b(x), self.own(x)], 1))
        return found


@pytest.mark.parametrize("constant", [0.5, 2.0, 4.0])
def test_the_constant_that_costs_fewest_units_stays(constant: float) -> None:
    net = Choice().double().eval()
    for layer in (net.a, net.b):
        kill(layer, [0], 1.0)
    kill(net.own, [0], constant)
    assert left(exact(net, IMAGE)[1])[:3] == [2, 2, 3]


def test_of_two_alike_the_larger_constant_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 3, padding=1)).double().eval()
    kill(net[0], [1], 0.5)
    kill(net[0], [3], -2.0)
    small, _ = exact(net, IMAGE)
    assert small[0].out_channels == 4
    assert -2.0 in small[0].bias.tolist()
    assert 0.5 not in small[0].bias.tolist()


@pytest.mark.parametrize("trained", [False, True])
def test_a_bias_that_is_made_trains_as_its_weight_does_and_marks_on_weights_stay(trained: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)).double().eval()
    kill(net[0], [0, 1], 0.5)
    net[2].weight.requires_grad_(trained)
    net[2].weight.mark = "of mine"
    small, _ = shrink(net, torch.randn(3, 4).double(), inplace=True)
    assert small[2].weight.shape == (5, 4)
    assert small[2].bias.requires_grad == small[2].weight.requires_grad == trained
    assert small[2].weight.mark == "of mine"
