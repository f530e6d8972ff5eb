"""Where constants move to, and what is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from paring.analysis.capture import capture
from paring.analysis.interpret import interpret
from paring.core import Inputs, SelectLinear
from paring.removal import compact
from paring.removal.apply import apply
from paring.removal.plan import ShrinkPlan, make_plan
from tests.analysis.test_conv_kinds import IMAGE, exact, kill, left
from tests.removal.test_compact import gap


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
    small, report = compact(net, x)
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
    small, report = compact(net, torch.randn(3, 4).double())
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
    small, report = compact(copy.deepcopy(net), torch.randn(3, 4))
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
    small, _ = compact(net, torch.randn(3, 4).double(), inplace=True)
    assert small[2].weight.shape == (5, 4)
    assert small[2].bias.requires_grad == small[2].weight.requires_grad == trained
    assert small[2].weight.mark == "of mine"


def planned(net: nn.Module, x: Tensor, **more: Any) -> tuple[nn.Module, ShrinkPlan]:
    """A copy after the plan, unchecked, and the plan. The function has to be the same all the same."""
    plan = make_plan(interpret(net, capture(net, Inputs.of(x)), training=False), **more)
    small = apply(copy.deepcopy(net), plan)
    assert gap(net, small, x) < 1e-12
    return small, plan


def random(*parts: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*parts).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    return net


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()


def test_no_bias_is_made_for_constants_that_nobody_takes() -> None:
    net = random(nn.Linear(4, 6), nn.Linear(6, 5, bias=False), nn.Linear(5, 2))
    kill(net[0], [0, 1], 0.5)
    with torch.no_grad():
        net[1].weight[:, :2] = torch.tensor([1.0, -1.0])  # they cancel out
    small, plan = planned(net, X)
    assert small[0].out_features == 4
    assert small[1].bias is None
    assert plan.folds == ()
    assert plan.removed == 2


def test_an_existing_bias_takes_only_what_rows_that_matter_read() -> None:
    net = random(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    kill(net[0], [1, 4], 0.5)
    with torch.no_grad():
        net[2].weight[:, 3] = 0
    weight = net[1].weight.detach()
    _, plan = planned(net, X)
    (fold,) = plan.folds
    assert fold.name == "1.bias"
    assert torch.allclose(fold.amount, torch.where(torch.arange(5) == 3, 0, 0.5 * (weight[:, 1] + weight[:, 4])))
    assert {(one.name, one.dim): one.keep.tolist() for one in plan.cuts} == {
        ("0.weight", 0): [0, 2, 3, 5],
        ("0.bias", 0): [0, 2, 3, 5],
        ("1.weight", 0): [0, 1, 2, 4],
        ("1.weight", 1): [0, 2, 3, 5],
        ("1.bias", 0): [0, 1, 2, 4],
        ("2.weight", 1): [0, 1, 2, 4],
    }


class Again(nn.Module):
    """A norm that is called behind two layers, and one of these twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5, bias=False), nn.Linear(4, 5, bias=False)
        self.norm, self.o = nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o(self.norm(self.b(self.a(x))) + self.norm(self.c(x)) + self.c(2 * x))
        return found


def test_a_norm_behind_two_layers_follows_neither() -> None:
    net = Again().double().eval()
    kill(net.a, [0, 1], 0.7)
    small, plan = planned(net, X)
    assert small.a.out_features == 4
    assert [fold.name for fold in plan.folds] == ["b.bias"]
    assert torch.equal(small.norm.running_mean, net.norm.running_mean)


@pytest.mark.parametrize("affine", [False, True])
def test_an_instance_norm_takes_any_shift_away_and_is_left_with_its_channels(affine: bool) -> None:
    net = random(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 2, bias=False), nn.InstanceNorm2d(6, affine=affine), nn.Conv2d(6, 2, 1)
    )
    kill(net[0], [0], 0.7)
    small, plan = planned(net, IMAGE)
    assert small[1].bias is None
    assert (plan.folds, plan.sizes) == ((), {})
    with torch.no_grad():
        net[3].weight[:, 2:] = 0
    small, plan = planned(net, IMAGE)
    assert plan.sizes == ({} if affine else {"2": 2})
    assert small[2].num_features == 2


def test_embeddings_lose_columns_and_no_rows() -> None:
    net = random(nn.Embedding(7, 5), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight[:, [0, 2]] = 0
    small, plan = planned(net, torch.tensor([[0, 3], [6, 1]]))
    assert [(one.name, one.dim) for one in plan.cuts] == [("0.weight", 1), ("1.weight", 1)]
    assert (small[0].num_embeddings, small[0].embedding_dim) == (7, 3)


@pytest.mark.parametrize(
    ("inputs", "unread", "selects"), [(16, 1, False), (16, 2, True), (17, 2, False), (17, 3, True)]
)
def test_rounded_layers_select_columns_where_an_eighth_goes(inputs: int, unread: int, selects: bool) -> None:
    net, x = random(nn.Linear(inputs, 4)), torch.randn(3, inputs).double()
    with torch.no_grad():
        net[0].weight[:, 1 : 1 + unread] = 0
    small, plan = planned(net, x, drop_inputs=True, multiple_of=2)
    assert (type(small[0]) is SelectLinear) == selects
    small, plan = planned(net, x, drop_inputs=True)
    assert plan.selects["0"].tolist() == [0, *range(1 + unread, inputs)]
    assert small[0].in_features == inputs - unread
    assert planned(net, x)[1].selects == {}


def test_columns_are_selected_among_those_that_stay_and_one_always_does() -> None:
    net = random(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Linear(3, 2))
    kill(net[0], [1, 2], 0.0)
    with torch.no_grad():
        net[0].weight[:, 3] = 0
    small, plan = planned(net, X, drop_inputs=True, spare=["0"])
    assert small[0].out_features == 6
    assert plan.selects["0"].tolist() == [0, 1, 2]
    small, plan = planned(net, X, drop_inputs=True)
    assert (small[0].in_features, small[0].out_features, small[2].in_features) == (3, 4, 4)
    assert list(plan.selects) == ["0"]
    with torch.no_grad():
        net[0].weight.zero_()
        net[2].weight.zero_()
    small, plan = planned(net, X, drop_inputs=True)
    assert (small[0].in_features, small[0].out_features, small[2].in_features) == (1, 1, 1)


def test_a_layer_that_is_called_twice_selects_nothing() -> None:
    net = Again().double().eval()
    with torch.no_grad():
        net.a.weight[:, 1], net.c.weight[:, 2] = 0, 0
    assert list(planned(net, X, drop_inputs=True)[1].selects) == ["a"]
