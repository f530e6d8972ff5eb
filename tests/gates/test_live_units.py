"""What a support says is left is what removal leaves, also when whole layers close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from marks import BY_HAND
from paring.core import gates
from paring.core.zeros import Zeros
from paring.cost import measure
from paring.gates import support

pytestmark = BY_HAND


class Residual(nn.Module):
    """Three layers that share their units, and one between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        out: Tensor = self.out(hidden + self.c(torch.relu(self.b(hidden))))
        return out


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def maps() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
    )


_LAST_UNITS = 4 + 1 + 4 + 4  # row and bias of the only unit left in `b`, its column in `c`, the biases there
NETS = {"chain": (chain, (3,)), "residual": (Residual, (3,)), "maps": (maps, (2, 4, 4))}


def drawn(net: nn.Module, seed: int) -> None:
    """Close whole places, parts of them, or nothing; with seed 0 everything."""
    draw = torch.Generator().manual_seed(seed)
    for _, _, gate in gates(net):
        share = (0.0, 0.0, 0.4, 0.8, 1.0)[int(torch.randint(5, (), generator=draw))] if seed else 0.0
        gate.log_alpha.data.copy_(torch.where(torch.rand(gate.shape, generator=draw) < share, 5.0, -5.0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("name", "at"),
    [("chain", "units"), ("chain", "inputs"), ("residual", "units"), ("residual", "inputs"), ("maps", "units")],
)
def test_cost_at_support_is_the_cost_of_the_finished_network(name: str, at: str, seed: int) -> None:
    make, shape = NETS[name]
    torch.manual_seed(seed)
    net, x = make().double(), torch.randn(2, *shape, dtype=torch.float64)
    run = pr.attach(net, pr.L0(at=at), x)
    drawn(net, seed)
    kept = run.cost(support)
    small = run.finish()
    real = measure(small, x)
    if any(
        isinstance(part, Zeros) for part in small.modules()
    ):  # a branch went whole, and with it the last units in it
        assert (name, at) == ("residual", "units")
        assert 0 < int(kept.parameters) - real.parameters <= _LAST_UNITS
        return
    assert (int(kept.parameters), int(kept.macs)) == (real.parameters, real.macs)
    assert run.report is not None
    assert not any("removal had to keep more" in note for note in run.report.notes)


@pytest.mark.parametrize("seed", range(4))
def test_open_weights_at_support_are_the_nonzeros_of_the_finished_network(seed: int) -> None:
    torch.manual_seed(seed)
    net, x = chain().double(), torch.randn(2, 3, dtype=torch.float64)
    run = pr.attach(net, pr.L0(at="weights"), x)
    drawn(net, seed)
    assert int(run.cost(support).parameters) == measure(run.finish(), x).nonzeros


def test_the_last_unit_of_every_layer_is_counted() -> None:
    """A unit of its own row and bias in each layer, and the column in its reader: 4 + 2 + 4 parameters."""
    net = chain()
    run = pr.attach(net, pr.L0(at="units"), torch.randn(2, 3))
    drawn(net, 0)
    assert [int(row.parameters) for row in run.cost(support).rows] == [4, 2, 4]
    assert [int(row.outputs) for row in run.cost(support).rows] == [1, 1, 2]
