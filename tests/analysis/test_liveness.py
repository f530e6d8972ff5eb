"""The rule of what stays, where its numbers decide."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from paring.analysis.liveness import Reader, agreed, product_readers, readers_of, settle
from paring.analysis.state import Liveness
from paring.removal.plan import _pays
from tests.analysis.test_conv_kinds import IMAGE, exact, kill, left


class Beside(nn.Module):
    """A constant that has to stay (a padded depthwise convolution reads it) beside others that it could stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.near, self.own = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        found: Tensor = self.near(torch.cat([a, b], 1)) + self.own(a)
        return found


@pytest.mark.parametrize(("constant", "stays"), [(1 / 60, 2), (1 / 68, 3), (-1 / 60, 2)])
def test_a_constant_stands_for_one_that_is_sixty_four_times_as_large_and_no_larger(constant: float, stays: int) -> None:
    net = Beside().double()
    kill(net.a, [0], constant)
    kill(net.b, [0, 1], 1.0)
    assert left(exact(net, IMAGE)[1])[:2] == [4, stays]


def test_constants_are_merged_by_whole_layers_that_may_take_them_over() -> None:
    from paring.analysis.capture import capture
    from paring.analysis.interpret import interpret

    net, x = Beside().double().eval(), IMAGE.double()
    kill(net.a, [0], 1.0)
    found = interpret(net, capture(net, x), training=False)
    for unmerged, number in (((), 1), (("near",), 0)):
        readers = {reader.site.name: reader for reader in readers_of(found, agreed(found, None), unmerged)}
        assert int(readers["near"].merge.sum()) == number
        assert not readers["own"].merge.any(), "a depthwise convolution has no other column to take it over"
        assert torch.equal(readers["near"].free, readers["near"].merge)


def test_only_constants_that_go_and_are_read_say_how_large_a_stand_in_has_to_be() -> None:
    """The largest that goes is 10: an unread one and one that stays are a hundred times as large."""
    constants = torch.tensor([1.0, 10.0, 1000.0, 1000.0, 0.1, 10 / 64, 1000.0], dtype=torch.float64)
    every = torch.ones(7, dtype=torch.bool)
    used, needed, merge = every[None].clone(), torch.zeros(9, dtype=torch.bool), every.clone()
    used[0, 2] = merge[6] = False  # unread; no constant of this reader
    needed[[3, 7, 8]] = True  # one that stays, the only row, and what lies outside
    site = SimpleNamespace(units=torch.tensor([7]), columns=torch.arange(7))
    reader = Reader(site, constants, used, every, merge, torch.zeros_like(every))  # type: ignore[arg-type]
    assert reader.stand_ins(needed).tolist() == [True, True, True, True, False, True, False]
    needed[:7] = True
    assert not reader.stand_ins(needed).any(), "nothing goes"


def test_constants_of_the_two_modes_agree_up_to_rounding() -> None:
    one = torch.tensor([1.0, 1.0, 0.0, torch.nan, 2.0], dtype=torch.float64)
    other = torch.tensor([1 + 5e-10, 1 + 2e-9, 1e-30, torch.nan, torch.nan], dtype=torch.float64)
    sites = [SimpleNamespace(sites=[SimpleNamespace(constants=c)]) for c in (one, other)]
    (found,) = agreed(*sites)  # type: ignore[arg-type]
    assert found.isnan().tolist() == [False, True, True, True, True]
    assert agreed(sites[0], None)[0] is one  # type: ignore[arg-type]


def test_columns_are_selected_where_widths_are_rounded_only_when_an_eighth_goes() -> None:
    assert [_pays(unread, 80, 2) for unread in (0, 9, 10, 80)] == [False, False, True, True]
    assert [_pays(unread, 80, 1) for unread in (0, 1)] == [False, True]


class Met(nn.Module):
    """A product of two activations: a unit that is zero on one side frees the one that it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 6), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) @ self.k(x).transpose(-1, -2)


def test_a_zero_frees_what_it_meets_in_a_product() -> None:
    from paring.analysis.capture import capture
    from paring.analysis.interpret import interpret

    net, x = Met().double().eval(), torch.randn(2, 3, 5).double()
    kill(net.q, [1, 4], 0.0)
    found = interpret(net, capture(net, x), training=False, free=True)
    (reader,) = product_readers(found, None)
    assert not reader.merge.any(), "a product has no bias to fold into and no border to merge in"
    needed = torch.zeros(found.units + 1, dtype=torch.bool)
    needed[-1] = True
    free = [int(unit) for unit in reader.site.columns[reader.free]]
    assert set(found.sites[0].units[[1, 4]].tolist()) <= set(free)


def test_what_is_kept_in_addition_is_computed_only_where_it_is_read() -> None:
    from paring.analysis.capture import capture
    from paring.analysis.interpret import interpret

    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        net[4].weight[:, 1:] = 0
    found = interpret(net, capture(net, torch.randn(2, 4).double()), training=False)
    readers = readers_of(found, agreed(found, None))
    first, second = found.sites[0].units, found.sites[1].units
    needed = torch.zeros(found.units + 1, dtype=torch.bool)
    needed[-1] = True
    needed[found.sites[2].units] = True
    kept = needed.clone()
    kept[second[0]] = True
    liveness = Liveness(needed, kept)
    assert settle(found, readers, liveness), "its inputs have to stay as well"
    assert bool(liveness.needed[second[0]])
    assert bool(liveness.kept[first].all())
    assert not settle(found, readers, liveness), "and nothing else"
    assert not liveness.kept[second[1:]].any()
