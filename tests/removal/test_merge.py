"""Constants into padded convolutions: one stands for all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from paring.removal import Report, compact
from tests.analysis.test_conv_kinds import IMAGE, chain, exact, head, kill, left
from tests.removal.test_compact import gap


def constant(norm: nn.Module, values: dict[int, float]) -> None:
    with torch.no_grad():
        for unit, value in values.items():
            norm.weight[unit], norm.bias[unit] = 0, value


def test_one_constant_stands_for_all_of_its_producer() -> None:
    net = chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), *head(4))
    constant(net[1], {0: 0.5, 2: -1.0, 3: 0.25, 5: 2.0, 6: 0.01})
    before = net[3].weight.detach().clone()
    small, report = exact(net, IMAGE)
    row = report.rows[0]
    assert (row.after, row.zero, row.merged, row.folded, row.unread) == (4, 1, 3, 0, 0)
    assert row.kept == {"constant but not zero at the padded convolution '3'": 1}
    merged = before[:, 5] + (0.5 * before[:, 0] + 0.25 * before[:, 3] + 0.01 * before[:, 6]) / 2
    assert torch.allclose(small[3].weight[:, 2], merged, atol=1e-12)  # the largest stays: channels 1 4 5 7
    assert torch.equal(small[3].weight[:, [0, 1, 3]], before[:, [1, 4, 7]])
    assert "merged" in str(report)
    assert left(compact(small, IMAGE)[1]) == left(report)  # nothing is left to merge


@pytest.mark.parametrize("training", [False, True])
def test_merging_holds_in_train_mode_too_and_the_networks_stay_equal(training: bool) -> None:
    torch.manual_seed(0)
    net = chain(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        *head(6),
    )
    constant(net[1], {0: 0.5, 2: -1.0, 3: 0.25})
    net.train(training)
    small, report = compact(net, IMAGE)
    assert (left(report)[0], report.rows[0].merged, report.mode) == (6, 2, "both" if training else "eval")
    copy_ = copy.deepcopy(net)
    for size in (6, 9, 12):
        x = torch.randn(4, 3, size, size).double()
        assert gap(copy_, small, x) < 1e-9
    assert torch.allclose(copy_[4].running_mean, small[4].running_mean, atol=1e-10)
    assert gap(copy_.eval(), small.eval(), IMAGE) < 1e-9


def test_where_the_modes_disagree_nothing_is_merged() -> None:
    net = chain(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 4, 3, padding=1), *head(4))
    kill(net[0], [0, 1], None)
    with torch.no_grad():
        net[1].running_mean.normal_()
    assert left(compact(net.train(), IMAGE)[1])[0] == 6
    assert left(compact(net.eval(), IMAGE)[1])[0] == 5


class Fork(nn.Module):
    """Two producers side by side, read by a padded convolution, one without padding and a depthwise one."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.near, self.far = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.own = nn.Conv2d(4, 4, 3, padding=1, groups=4) if deep else None
        self.tail = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.sigmoid(self.a(x)), torch.sigmoid(self.b(x))
        both = torch.cat([a, b], 1)
        y = torch.relu(self.near(both)) + self.far(2 * both)
        return y + self.tail(a if self.own is None else self.own(a))


def test_readers_of_two_kinds_and_constants_of_two_producers() -> None:
    net = Fork(deep=False).double()
    kill(net.a, [0, 1], 1.0)
    kill(net.b, [2, 3], 2.0)
    small, report = exact(net, IMAGE)
    assert left(report)[:2] == [2, 3]  # the larger constants are those of b; one of them stays
    assert (report.rows[0].merged, report.rows[1].merged) == (2, 1)
    assert small.near.in_channels == small.far.in_channels == 5
    net = Fork(deep=True).double()
    kill(net.a, [0, 1], 1.0)
    kill(net.b, [2, 3], 2.0)
    report = exact(net, IMAGE)[1]
    assert left(report)[:2] == [4, 2]  # a constant into a padded depthwise convolution stays, and stands for b


def test_a_tiny_constant_does_not_stand_for_large_ones() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    kill(net[0], [0, 1], 5.0)
    kill(net[0], [2], 1e-9)
    small, report = exact(net, IMAGE)
    assert left(report) == [4, 4, 2]
    assert small[0].bias[0].item() == 5.0


def test_constants_on_both_sides_of_an_add_merge_together() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)
            self.norm = nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.out(h + self.norm(self.b(h)))

    net = Residual().double().eval()
    kill(net.a, [0, 1, 2], 1.5)
    constant(net.norm, {0: 1.0, 1: 0.5, 2: -1.5})  # sums 2.5, 2 and 0
    small, report = exact(net, IMAGE)
    assert left(report) == [3, 3, 2]
    assert small.norm.bias[0].item() == 1.0
    assert report.rows[0].merged == 2


def test_zeros_alone_can_be_asked_for() -> None:
    from paring.analysis.capture import capture
    from paring.analysis.interpret import interpret
    from paring.removal.plan import make_plan

    net = chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    kill(net[0], [0, 1], 5.0)
    kill(net[0], [2], 0.0)
    found = interpret(net, capture(net, IMAGE), training=False)
    assert [len(make_plan(found, zeros_only=only).merges) for only in (False, True)] == [1, 0]
    assert [make_plan(found, zeros_only=only).rows[0].after for only in (False, True)] == [4, 5]


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
def test_rounded_widths_keep_what_their_units_need(multiple: int) -> None:
    from paring.analysis.capture import capture
    from paring.analysis.interpret import interpret
    from paring.removal.apply import apply
    from paring.removal.plan import make_plan

    net = chain(
        nn.Conv2d(3, 7, 1),
        nn.Sigmoid(),
        nn.Conv2d(7, 10, 1),
        nn.Sigmoid(),
        nn.Conv2d(10, 9, 3, padding=1),
        nn.ReLU(),
        *head(9),
    )
    kill(net[0], [0, 3], None)
    kill(net[4], [0, 4], 1.0)
    with torch.no_grad():
        net[2].weight[:4] = 0
        net[2].weight[:4, [0, 3]] = 1  # constants that come from constants
    plan = make_plan(interpret(net, capture(net, IMAGE), training=False), multiple_of=multiple)
    small = apply(copy.deepcopy(net), plan)
    assert gap(net, small, torch.randn(3, 3, 7, 7).double()) < 1e-10
    assert all(row.after % multiple == 0 or row.after == row.before for row in plan.rows[:3])


def test_float32_rows_of_the_report() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).float()
    kill(net[0], [0, 1, 2], 0.7)
    small, report = compact(net, IMAGE.float())
    assert isinstance(report, Report)
    assert report.rows[0].merged == 2
    assert gap(net, small, torch.randn(2, 3, 11, 11)) < 1e-5
