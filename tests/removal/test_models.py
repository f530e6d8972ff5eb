"""Well-known networks with dead units: the function stays in float64, and all that can go is gone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from paring.removal import compact
from paring.removal.report import Mode
from tests.removal.test_compact import gap
from tests.removal.zoo import SPOTS, Bottleneck, Spot, decoy, resnet50, shake

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def silence(net: nn.Module, spot: Spot, unit: int, constant: float) -> None:
    """The unit becomes this constant (0 or less is zero behind a ReLU), everywhere it is written."""
    modules = dict(net.named_modules())
    with torch.no_grad():
        for norm in (modules[name] for name in spot.norms):
            norm.weight[unit], norm.bias[unit] = 0, constant / len(spot.norms)
        for layer in (modules[name] for name in spot.layers if not spot.norms):
            (layer.weight[:, unit] if isinstance(layer, nn.ConvTranspose2d) else layer.weight[unit]).zero_()
            if layer.bias is not None:
                layer.bias[unit] = constant


def hurt(net: nn.Module, spots: list[Spot], mode: Mode, generator: torch.Generator) -> dict[str, int | None]:
    """Kill units at every spot in the three ways; what is left of each layer that loses some (None: it depends)."""
    modules = dict(net.named_modules())
    left: dict[str, int | None] = {}
    for spot in spots:
        layer = modules[spot.layers[0]]
        width = layer.weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0]
        order = torch.randperm(width, generator=generator).tolist()
        zeros, constants, balanced = order[: width // 4], order[width // 4 : width // 2], order[width // 2]
        biased = bool(spot.norms) or layer.bias is not None
        if spot.reader == "group":  # whole groups of two
            zeros, constants, balanced = [2, 3], [6, 7], 0
        for unit in zeros:
            silence(net, spot, unit, 0.0)
        for i, unit in enumerate(constants):
            silence(net, spot, unit, 1.0 + i / 8 if biased else 0.0)
        decoy(modules[spot.layers[-1]], balanced)
        goes = len(zeros) + (len(constants) if spot.reader != "merge" else max(0, len(constants) - 1))
        if spot.noisy and mode == "both":
            goes = len(zeros)
        left.update(dict.fromkeys(spot.layers, width - goes))
        if (
            not biased and mode == "both"
        ):  # behind a norm the zero may be another constant in train mode than in eval mode
            left.update(dict.fromkeys(spot.layers))
    return left


@pytest.mark.parametrize("mode", ["eval", "both"])
@pytest.mark.parametrize("make", SPOTS, ids=[make.__name__ for make in SPOTS])
def test_dead_units_of_well_known_networks_go(make: Callable[[], nn.Module], mode: Mode) -> None:
    generator = torch.Generator().manual_seed(0 if mode == "eval" else 1)
    net = make().double().train(mode == "both")
    shake(net, generator)
    widths = {
        name: m.weight.shape[isinstance(m, nn.ConvTranspose2d)]
        for name, m in net.named_modules()
        if isinstance(m, LAYERS)
    }
    expected = {**widths, **hurt(net, SPOTS[make], mode, generator)}
    x = torch.randn(4, 3, 12, 12, generator=generator).double()
    small, report = compact(net, x, mode=mode)
    assert not report.rolled_back
    assert report.form == "module"
    found = {row.layer: row.after for row in report.rows}
    assert found == {name: found[name] if count is None else count for name, count in expected.items()}
    assert gap(copy.deepcopy(net).eval(), copy.deepcopy(small).eval(), x) < 1e-10
    noisy = any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules())
    if mode == "both" and not noisy:
        assert gap(net, small, x) < 1e-10
        assert gap(net.eval(), small.eval(), x) < 1e-10  # running statistics were moved alike
    again = compact(small, x, mode=mode, verify=False)[1]
    assert {row.layer: row.after for row in again.rows} == found


def test_a_resnet50_takes_seconds() -> None:
    net = resnet50().eval()
    shake(net, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for norm in (part[1] for m in net.modules() if isinstance(m, Bottleneck) for part in (m.first, m.second)):
            norm.weight[::2], norm.bias[::4], norm.bias[2::4] = 0, -1, 0.5
    x = torch.randn(2, 3, 64, 64)
    start = time.process_time()
    small, report = compact(net, x)
    assert time.process_time() - start < 15
    assert not report.rolled_back
    after = {row.layer: row.after for row in report.rows}
    assert (after["2.first.0"], after["2.second.0"], after["2.third.0"]) == (33, 32, 256)
    assert (after["17.first.0"], after["17.second.0"], after["17.third.0"]) == (257, 256, 2048)
    assert report.parameters == (25_557_032, sum(p.numel() for p in small.parameters()))
