"""Hard units: values, ties, compile, autocast, export, exact removal behind them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from paring.hard import Hinge, LearnedStep, SaturatedReLU, SaturatedSTE, Sign, SoftHinge, Staircase, staircase
from paring.removal import compact

UNITS: tuple[nn.Module, ...] = (Sign(), Staircase(3), Staircase(5, Hinge(), each=True), SaturatedReLU(), LearnedStep(3))
every = pytest.mark.parametrize("unit", UNITS, ids=str)


def naive(x: float, steps: int) -> float:
    """The staircase as a count of the thresholds that x exceeds."""
    return sum(x > (k / (steps - 1) if steps > 1 else 0) for k in range(steps)) / steps


def test_the_sign_of_zero_is_minus_one() -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.0, -2.0, math.inf, -math.inf])
    assert Sign()(x).tolist() == [-1, -1, 1, -1, 1, -1, 1, -1]


def test_staircases_count_the_thresholds_below() -> None:
    for steps in (1, 2, 3, 5, 9):
        ties = [k / (steps - 1) for k in range(steps)] if steps > 1 else [0.0]
        x = torch.tensor([*ties, *(t + 1e-9 for t in ties), *(t - 1e-9 for t in ties), -3.0, 4.0], dtype=torch.float64)
        assert Staircase(steps)(x).tolist() == pytest.approx([naive(v, steps) for v in x.tolist()], abs=1e-12)
        y = torch.rand(2000, dtype=torch.float64) * 1.4 - 0.2
        assert torch.allclose(
            Staircase(steps)(y), torch.tensor([naive(v, steps) for v in y.tolist()], dtype=torch.float64), atol=1e-12
        )
    levels = Staircase(5)(torch.linspace(-1, 2, 301)).unique()
    assert torch.allclose(levels, torch.arange(6) / 5)


def test_the_saturated_relu_is_a_clamp() -> None:
    # Not at the corners, where torch 2.14 has another slope than 2.13.
    x = torch.tensor([-1.0, 0.1, 0.4, 0.9, 2.0], requires_grad=True)
    y = SaturatedReLU()(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([0, 0.1, 0.4, 0.9, 1])
    assert SaturatedReLU()(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_learned_steps_against_the_formulas_of_the_paper() -> None:
    torch.manual_seed(0)
    unit, x, g = LearnedStep(3).double(), torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    unit.step.data.fill_(0.3)
    x.requires_grad_()
    y = unit(x)
    y.backward(g)
    v = x.detach() / 0.3
    inside = (v >= 0) & (v <= 3)
    assert torch.allclose(y, 0.3 * v.clamp(0, 3).round(), atol=1e-12)
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.where(inside, g, 0.0), atol=1e-12)
    slope = torch.where(inside, v.round() - v, torch.where(v < 0, 0.0, 3.0))
    assert unit.step.grad is not None
    assert torch.allclose(unit.step.grad, (g * slope).sum() / math.sqrt(3 * 4), atol=1e-12)
    start = LearnedStep(3)(torch.linspace(-1, 2, 100)).unique()
    assert torch.allclose(start, torch.arange(4) / 3)


@every
def test_nan_is_not_hidden(unit: nn.Module) -> None:
    assert unit(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]


@every
@pytest.mark.slow
def test_compile_deepcopy_pickle_autocast(unit: nn.Module) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), copy.deepcopy(unit), nn.Linear(5, 2))
    x = torch.randn(6, 4)

    def gradients(call: nn.Module, of: nn.Module) -> list[Tensor]:
        of.zero_grad()
        call(x).square().sum().backward()
        return [p.grad.clone() for p in of.parameters() if p.grad is not None]

    expected = gradients(net, net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for found in (
        gradients(compiled, net),  # type: ignore[arg-type]
        *(gradients(twin, twin) for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)))),
    ):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()


@every
def test_closed_units_go_through_hard_units_exactly(unit: nn.Module) -> None:
    """A unit whose pre-activation is zero is a constant (-1 behind a sign), which the readers' biases take over."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), copy.deepcopy(unit), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2),
        copy.deepcopy(unit), nn.Flatten(), nn.Linear(20, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        net[1].weight[1::2] = 0.0
        net[1].bias[1::2] = 0.0
        net[4].weight[0] = 0.0
        net[4].bias[0] = 0.0
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    small, _ = compact(net, x)
    assert small[0].out_channels == 3
    assert small[4].out_channels == 4
    assert float((small(x) - net(x)).detach().abs().max()) < 1e-10


def test_no_steps_are_refused() -> None:
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="a whole number, at least 1"):
            Staircase(steps)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a whole number, at least 1"):
            LearnedStep(steps)  # type: ignore[arg-type]


def test_units_say_what_they_are() -> None:
    assert str(Sign(SaturatedSTE())) == "Sign(rule=SaturatedSTE(window=1.0))"
    assert "steps=3" in str(Staircase())
    assert Sign().rule == SoftHinge()
    assert staircase(torch.tensor([0.3]), 3, SoftHinge()).item() == pytest.approx(1 / 3)
