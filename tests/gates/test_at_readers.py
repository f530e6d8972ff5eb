"""Units whose gates sit where they are read: there is no module behind which a closed one would be zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.analysis import wiring
from paring.core import Inputs, gates, release
from paring.gates import sites
from paring.pruning.gated import GatedCopy
from paring.removal import compact
from paring.testing import difference

F64 = torch.float64


class Shifted(nn.Module):
    """A frozen norm in front of a padded convolution: a closed unit would come out as the shift, inside the border only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.rand(8))

    def forward(self, x: Tensor) -> Any:
        assert isinstance(self.scale, Tensor)
        assert isinstance(self.shift, Tensor)
        y = F.relu(self.a(x) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1))
        return self.out(F.relu(self.b(y)))


class Positions(nn.Module):
    """A stream with positions, which a gate on its writers does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (nn.Linear(a, b) for a, b in ((6, 8), (8, 9), (9, 8), (8, 3)))
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor) -> Any:
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.place
        return self.head(h + self.down(F.gelu(self.up(h))))


def bare_norm() -> nn.Module:
    """As in image translation: norms without scale and shift."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)]
    return nn.Sequential(*layers, nn.InstanceNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1))


def saturated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 2, 3, padding=1))


def example(net: nn.Module) -> Tensor:
    return torch.randn(2, 4, 6, dtype=F64) if isinstance(net, Positions) else torch.randn(2, 3, 6, 6, dtype=F64)


MADE: list[tuple[Callable[[], nn.Module], dict[str, list[tuple[str, str]]]]] = [
    (Shifted, {"a": [("b", "inputs")], "b": []}),
    (Positions, {"embed": [("up", "inputs"), ("head", "inputs")], "up": []}),
    (bare_norm, {"0": [("3", "inputs")], "3": [("6", "inputs")]}),
    (saturated, {"0": [("2", "inputs")]}),
]


@pytest.mark.parametrize(("make", "wanted"), MADE, ids=lambda v: getattr(v, "__name__", ""))
def test_where_they_sit(make: Callable[[], nn.Module], wanted: dict[str, list[tuple[str, str]]]) -> None:
    net = make().double().eval()
    found = sites(net, wiring(net, example(net)), "units")
    assert {site.layer: [(m.module, m.place) for m in site.mounts] for site in found} == wanted
    shown = {row.layers[0]: row.gates for row in pr.groups(net, example(net)) if row.gateable}
    assert all(shown[layer] == tuple(name for name, _ in mounts) for layer, mounts in wanted.items() if mounts)


def test_a_constant_that_can_be_folded_needs_no_such_gates() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3))
    assert [site.module for site in sites(net, wiring(net, torch.randn(2, 4)), "units")] == ["0"]


@pytest.mark.parametrize("make", [one for one, _ in MADE])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_closed_goes_exactly_and_costs_what_was_said(make: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net = make().double().eval()
    x = example(net)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    mask = torch.cat([torch.arange(size) == 0 for size in gated.sizes]) | (torch.rand(gated.units) > 0.5)
    gated.set(mask.double())
    bare = copy.deepcopy(gated.net)
    release(bare)
    assert difference(bare, gated.net, x) < 1e-12
    small, report = compact(bare, x)
    assert not report.rolled_back
    assert difference(small, gated.net, x) < 1e-9
    assert sum(p.numel() for p in small.parameters()) == int(gated.cost(mask).parameters)


def test_they_multiply_what_is_read() -> None:
    torch.manual_seed(0)
    net = Positions().double().eval()
    x, z = example(net), torch.rand(8, dtype=F64)
    gated = GatedCopy.of(net, Inputs.of(x), "units")
    gated.set(torch.cat([z, torch.ones(9, dtype=F64)]))
    h = torch.cat([net.token.expand(2, -1, -1), net.embed(x)], 1) + net.place
    wanted = net.head(z * (h + net.down(F.gelu(net.up(z * h)))))
    assert torch.allclose(gated.net(x), wanted, atol=1e-12)


@pytest.mark.parametrize("make", [Shifted, Positions, bare_norm])
@pytest.mark.parametrize(
    "method", [pr.L0(3e-2), pr.L0(3e-2, per_example=True), pr.Stack(pr.L0(3e-2), pr.Shrink(every=1))]
)
def test_networks_train_shrink_and_finish_to_the_same_function(make: Callable[[], nn.Module], method: Any) -> None:
    torch.manual_seed(0)
    net = make()
    x = example(net).float()
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    run = pr.attach(net, method, example=x, optimizer=opt, steps=4)
    for _ in range(4):
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    for _, _, gate in gates(net):
        gate.get_parameter("log_alpha").data[:3] = -9.0
    small = run.finish()
    assert difference(small, net, x) < 1e-5
    first = {Shifted: "a", Positions: "embed", bare_norm: "0"}[make]
    assert small.get_parameter(f"{first}.weight").shape[0] == 5


def test_two_gates_in_one_place_are_refused() -> None:
    net = saturated().double()
    with pytest.raises(
        ValueError, match=r"two places ask for a gate at 'inputs' of layer '2'.*can be gated only there"
    ):
        pr.attach(net, pr.L0(1e-3, at=("units", "inputs")), example=example(net))
    pr.attach(net, pr.L0(1e-3, at=("units", "inputs:!2")), example=example(net))
