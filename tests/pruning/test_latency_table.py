"""Times at other widths: predicted from a table, chosen by, measured, and chosen again."""

from __future__ import annotations

import copy
import itertools
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.core import Inputs, release
from paring.cost.latency import Latency
from paring.pruning.gated import GatedCopy
from paring.pruning.latency_table import Grid, LatencyTable, seconds
from pruning.networks import Residual, batches, mlp, seeded

module = import_module("paring.pruning.search")


def macs_clock(net: nn.Module, args: tuple[Any, ...]) -> float:
    """A device on which a multiply-accumulate takes a nanosecond and a call a microsecond."""
    total = 0

    def count(layer: nn.Module, given: tuple[Any, ...], out: torch.Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * out.numel()

    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        net(*args)
    for handle in handles:
        handle.remove()
    return total * 1e-9 + len(layers) * 1e-6


def test_between_the_points_it_is_bilinear() -> None:
    values = torch.arange(16.0).double().view(4, 4) ** 1.5
    grid = Grid(values)
    points = (0.25, 0.5, 0.75, 1.0)
    for (i, a), (j, b) in itertools.product(enumerate(points), repeat=2):
        assert float(grid.at(torch.tensor(a).double(), torch.tensor(b).double())) == pytest.approx(float(values[i, j]))
    middle = grid.at(torch.tensor(0.375).double(), torch.tensor(0.875).double())
    assert float(middle) == pytest.approx(float(values[:2, 2:].mean()))
    low = grid.at(torch.tensor(0.125).double(), torch.tensor(1.0).double())
    assert float(low) == pytest.approx(float(values[0, 3]) / 2)


@pytest.mark.parametrize("make", [Residual, mlp])
def test_it_predicts_a_device_that_counts(make: Any) -> None:
    shape = (2, 6, 6) if make is Residual else (5,)
    net, (x, _) = seeded(make).eval(), batches(shape)[0]
    gated = GatedCopy.of(net, Inputs((x[:2],)), "units")
    table = LatencyTable(gated, Inputs((x,)), macs_clock)
    assert float(table.seconds(gated.model())) == pytest.approx(macs_clock(net, (x,)))
    for seed in range(3):
        mask = torch.rand(gated.units, generator=torch.Generator().manual_seed(seed)) < 0.7
        for part in mask.split(gated.sizes):
            part[0] = True
        gated.set(mask)
        small = pr.compact(_released(gated), x[:2])[0]
        gated.set(torch.ones_like(mask))
        assert float(table.seconds(gated.cost(mask))) == pytest.approx(macs_clock(small, (x,)), rel=0.15)


def _released(gated: GatedCopy) -> nn.Module:
    net = copy.deepcopy(gated.net)
    release(net)
    return net


def test_a_latency_is_asked_for_again_until_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    net, found = seeded(Residual), batches((2, 6, 6))
    monkeypatch.setattr("paring.pruning.latency_table.seconds", macs_clock)

    def slow(nets: dict[str, nn.Module], inputs: Any, **_: Any) -> dict[str, Latency]:
        """Everything takes a constant on top that the table does not know."""
        times = {name: macs_clock(one, inputs.args) + 2e-5 for name, one in nets.items()}
        return {name: Latency(t, t, t, (t,)) for name, t in times.items()}

    monkeypatch.setattr(module, "latency", slow)
    small, pruned = pr.prune(net, found, to=pr.Budget(latency=0.7), epochs=0)
    whole = Inputs((found[0][0],))
    times = slow({"dense": net, "small": small}, whole)
    got = times["small"].median_s / times["dense"].median_s
    assert pruned.shares["latency"] == pytest.approx(got)
    assert got == pytest.approx(0.7, rel=0.1)


def test_a_latency_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.pruning.latency_table.seconds", macs_clock)
    stuck = Latency(1.0, 1.0, 1.0, (1.0,))
    monkeypatch.setattr(module, "latency", lambda nets, inputs, **_: dict.fromkeys(nets, stuck))
    with pytest.warns(pr.ParingWarning, match="a latency of 50% .* was asked, and 100% was measured"):
        pr.prune(seeded(mlp), batches((5,)), to=pr.Budget(latency=0.5), epochs=0)


def test_the_clock_tells_more_from_less() -> None:
    small, large = nn.Linear(8, 8), nn.Linear(2048, 2048)
    assert seconds(small, (torch.randn(16, 8),)) < seconds(large, (torch.randn(16, 2048),))


def test_l0_refuses_a_latency() -> None:
    with pytest.raises(ValueError, match="counts parameters and MACs"):
        pr.L0(price=pr.Budget(latency=0.5))
