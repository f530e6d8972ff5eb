"""Removal through norms of all kinds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from paring.removal import compact
from tests.analysis.test_conv_kinds import IMAGE, chain, exact, head, kill, left
from tests.removal.test_compact import gap


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mode", ["eval", "both"])
def test_instance_norm(tracked: bool, affine: bool, mode: str) -> None:
    norm = nn.InstanceNorm2d(5, affine=affine, track_running_stats=tracked)
    net = chain(nn.Conv2d(3, 5, 1), norm, nn.Tanh(), nn.Conv2d(5, 4, 3, bias=False), nn.InstanceNorm2d(4), *head(4))
    kill(net[0], [1, 2], None)
    if tracked:
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    if affine:
        with torch.no_grad():
            norm.weight[4] = 0
    net.train(mode == "both")
    small, report = compact(net, IMAGE, mode=mode)
    known = tracked and mode == "both"  # then a constant is another one in eval mode: it stays
    assert left(report)[0] == 5 - (0 if known else 2) - affine
    assert not report.rolled_back
    assert small[3].bias is None  # an instance norm takes the shift away
    assert small[1].num_features == left(report)[0]
    x = torch.randn(4, 3, 8, 8).double()
    assert gap(copy.deepcopy(net).eval(), copy.deepcopy(small).eval(), x) < 1e-10
    if mode == "both":
        assert gap(net, small, x) < 1e-8


class Viewed(nn.Module):
    """Has a size in its forward, so that it is cut in graph form."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Sigmoid(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return self.head(maps.mean((2, 3)).view(x.shape[0], 4))


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_batch_norm_is_one_in_eval_mode_while_the_network_trains(frozen: bool, sized: bool) -> None:
    net = Viewed() if sized else nn.Sequential(Viewed().body, *head(4)).double()
    body = net.body if sized else net[0]
    kill(body[0], [1, 2], None)  # constant in front of the norm: it knows these only when it does not follow the batch
    kill(body[3], [3])
    with torch.no_grad():
        body[1].running_mean.normal_()
        body[4].weight[3], body[4].bias[3] = 0, 0
    net.train()
    if frozen:
        body[1].eval()
    small, report = compact(net, IMAGE)
    assert not report.rolled_back
    assert left(report)[:2] == [3 if frozen else 5, 3]
    assert report.form == ("graph" if sized else "module")
    for _ in range(2):  # running means move, those of the frozen norm do not
        x = torch.randn(4, 3, 9, 9).double()
        assert gap(net, small, x) < 1e-10
    assert gap(net.eval(), small.eval(), x) < 1e-10


def test_groups_of_a_group_norm_go_whole() -> None:
    net = chain(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 4, 3, padding=1), *head(4))
    with torch.no_grad():
        net[1].weight[[0, 1, 2, 3]], net[1].bias[[0, 1, 2, 3]] = 0, 0  # the first group, and one of the second
        net[3].weight[:, [6, 7, 8]] = 0  # nobody reads the third
    small, report = exact(net, IMAGE)
    assert left(report) == [6, 4, 2]
    assert (small[1].num_groups, small[1].num_channels) == (2, 6)
    assert (report.rows[0].zero, report.rows[0].unread) == (3, 3)


def test_a_group_of_constants_comes_out_of_a_group_norm_as_constants() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Sigmoid(), nn.Conv2d(6, 4, 3), *head(4))
    kill(net[0], [3, 4, 5], None)
    assert left(exact(net, IMAGE)[1])[0] == 3
    kill(net[0], [3, 4, 5], 0.3)  # all the same: the shift of the norm, not rounding over the root of eps
    assert left(exact(net, IMAGE)[1])[0] == 3


def test_group_norm_without_parameters_is_a_barrier() -> None:
    net = chain(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    kill(net[0], [0, 1])
    report = compact(net, IMAGE)[1]
    assert report.rows[0].kept == {"read by group_norm in '1'": 2}


@pytest.mark.parametrize(("kind", "first"), [(nn.LayerNorm, 6), (nn.RMSNorm, 5)])
def test_features_of_a_layer_norm_stay_but_constants_behind_it_count(kind: type[nn.Module], first: int) -> None:
    """A zero in front of a LayerNorm is none behind it, where the tanh reads it."""
    net = chain(nn.Linear(5, 6), kind(6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    kill(net[0], [0])
    with torch.no_grad():
        net[1].weight[[1, 2]] = 0
        net[3].weight[1, [0, 3, 4, 5]] = 0  # reads constants alone
    x = torch.randn(3, 5).double()
    small, report = compact(net, x)
    assert left(report) == [first, 3, 2]
    assert gap(net, small, torch.randn(7, 5).double()) < 1e-10


def test_batch_norm_that_averages_over_all_steps() -> None:
    net = chain(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=None), nn.ReLU(), nn.Conv2d(5, 2, 3), *head(2)).train()
    with torch.no_grad():
        net[1].weight[[0, 2]], net[1].bias[[0, 2]] = 0, 0.5
    small, report = compact(net, IMAGE)
    assert report.mode == "both"
    assert left(report)[0] == 3
    assert net[1].momentum is small[1].momentum is None
    twin = copy.deepcopy(net)
    for _ in range(3):
        x = torch.randn(4, 3, 9, 9).double()
        assert gap(twin, small, x) < 1e-9
    assert int(small[1].num_batches_tracked) == 3
    assert gap(twin.eval(), small.eval(), IMAGE) < 1e-9


def test_norms_called_twice_lose_what_is_dead_at_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.slope = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.GroupNorm(2, 4),
                nn.PReLU(4),
            )
            self.out = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.slope(self.norm(self.b(self.slope(self.norm(self.a(x)))))))

    net = Twice().double()
    kill(net.a, [0, 1])
    kill(net.b, [0, 1])
    small, report = compact(net, IMAGE)
    assert left(report) == [2, 2, 2]
    torch.testing.assert_close(small(IMAGE), net(IMAGE), atol=1e-12, rtol=0)
