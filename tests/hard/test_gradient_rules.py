"""Gradient rules against their formulas, and the surrogate objective against finite differences."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.hard import (
    STE,
    ApproxSign,
    ErrorDecay,
    GradientRule,
    Hinge,
    LogLoss,
    PerUnitLoss,
    SaturatedSTE,
    SaturatingHinge,
    Sign,
    SoftHinge,
    Staircase,
    UnitLoss,
    sign,
    staircase,
    targets,
    thresholds,
)

LOSSES: tuple[Callable[..., UnitLoss], ...] = (Hinge, SaturatingHinge, SoftHinge, LogLoss, PerUnitLoss)
RULES: tuple[GradientRule, ...] = (
    STE(), SaturatedSTE(), SaturatedSTE(3**0.5), ApproxSign(), ErrorDecay(0.3), ErrorDecay(4.0),
    *(loss(weighted=weighted) for loss in LOSSES for weighted in (True, False)),
)  # fmt: skip


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradient.view(-1)[::7] = 0.0
    return z, gradient


def descended(unit: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(unit(x), x, gradient)
    return found


def test_rules_are_their_formulas() -> None:
    z, g = batch(50, 9)
    z[0] = torch.tensor([-1, 1, 0, -(3**0.5), 3**0.5, 1 + 1e-12, -1 - 1e-12, 0.5, -0.5], dtype=torch.float64)
    inside = (z >= -1) & (z <= 1)
    expected = {
        STE(): g,
        SaturatedSTE(): torch.where(inside, g, 0.0),
        SaturatedSTE(3**0.5): torch.where((z.square() <= 3) | (z.abs() == 3**0.5), g, 0.0),
        ApproxSign(): g * torch.where(inside, 2 - 2 * z.abs(), 0.0),
        ErrorDecay(0.5): g / torch.cosh(0.5 * z) ** 2,
        ErrorDecay(3.0): g * 3 / torch.cosh(3 * z) ** 2,
        LogLoss(): g * torch.where(g == 0, 0.0, 1 / (1 + torch.exp(-g.sign() * z))),
        Hinge(): torch.where(-g.sign() * z < 1, g, 0.0),
    }
    for rule, wanted in expected.items():
        assert torch.allclose(rule.descend(z, g), wanted, rtol=0, atol=1e-12), rule


def test_saturating_hinge_is_the_saturated_straight_through_estimator() -> None:
    z, g = batch(64, 11)
    z.view(-1)[:3] = torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.equal(descended(Sign(SaturatingHinge()), z, g), descended(Sign(SaturatedSTE()), z, g))
    assert torch.equal(descended(Sign(SaturatingHinge()), z, g), g * (z.abs() <= 1))
    for steps in (1, 3, 5):
        found = descended(Staircase(steps, SaturatingHinge()), z, g)
        assert torch.equal(found, descended(Staircase(steps, SaturatedSTE()), z, g))
        assert torch.equal(found, g * ((2 * z - 1).abs() <= 1))
    assert not torch.equal(descended(Sign(Hinge()), z, g), descended(Sign(SaturatedSTE()), z, g))


def test_soft_hinge_is_sech_squared() -> None:
    z, g = batch(64, 11)
    assert torch.allclose(descended(Sign(SoftHinge()), z, g), g / torch.cosh(z) ** 2, rtol=0, atol=1e-12)
    for steps in (1, 3, 5):
        found = descended(Staircase(steps, SoftHinge()), z, g)
        assert torch.allclose(found, g / torch.cosh(2 * z - 1) ** 2, rtol=0, atol=1e-12)


def test_a_staircase_with_the_loss_at_every_step_is_a_sum_of_signs() -> None:
    x, g = batch(40, 5)
    for steps in (1, 3, 5):
        for rule in (SoftHinge(), SaturatedSTE(), LogLoss(), Hinge()):
            twin = x.clone().requires_grad_()
            # y = 1/n Σ (sign(2 (x - θ)) + 1) / 2, so the rule sees G / (2n) and the inner slope is 2
            y = sum((sign(2 * (twin - step), rule) + 1) / (2 * steps) for step in thresholds(steps))
            assert isinstance(y, Tensor)
            (expected,) = torch.autograd.grad(y, twin, g)
            assert torch.allclose(y, staircase(x, steps, rule, each=True), rtol=0, atol=1e-12)
            found = descended(lambda x, n=steps, r=rule: staircase(x, n, r, each=True), x, g)  # type: ignore[misc]
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_without_weights_only_the_targets_count() -> None:
    z, g = batch(16, 6)
    found = descended(Sign(SoftHinge(weighted=False)), z, g)
    assert torch.allclose(found, g.sign() / torch.cosh(z) ** 2 / 16, rtol=0, atol=1e-12)
    assert torch.equal(found, descended(Sign(SoftHinge(weighted=False)), z, 1e6 * g))
    steps = descended(Staircase(3, SoftHinge(weighted=False)), z, g)
    assert torch.allclose(steps, g.sign() / torch.cosh(2 * z - 1) ** 2 / 16, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [True, False])
def test_derivatives_are_those_of_the_surrogate_objective(loss: Callable[..., UnitLoss], weighted: bool) -> None:
    rule = loss(weighted=weighted)
    z, g = batch(30, 7)
    z[(z.abs() - 1).abs() < 1e-3] = 0.4  # finite differences do not see a kink
    t, h = targets(g), 1e-6
    value = rule.weight(g)
    slope = value * (rule.value(z + h, t) - rule.value(z - h, t)) / (2 * h)
    assert torch.allclose(rule.descend(z, g), slope, rtol=0, atol=1e-8)
    assert bool((rule.descend(z, g)[g == 0] == 0).all())
    assert bool((rule.value(z, t)[t == 0] == 0).all())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("unit", [Sign, Staircase])
def test_weights_descend_on_the_surrogate_objective(loss: Callable[..., UnitLoss], unit: type[nn.Module]) -> None:
    """The gradient that reaches the weights below is that of Σ |G| l(z, t), t and G held."""
    torch.manual_seed(1)
    below, above = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    hard = unit(rule=loss())
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    hidden = hard(below(x))
    hidden.retain_grad()
    F.cross_entropy(above(hidden), y).backward()
    g, rule = hidden.grad, hard.rule
    assert g is not None
    assert below.weight.grad is not None
    assert isinstance(rule, UnitLoss)

    def surrogate() -> float:  # a staircase: unit 2h - 1 of 2x - 1, whose gradient is G / 2
        z, scale = (below(x), 1.0) if isinstance(hard, Sign) else (2 * below(x) - 1, 0.5)
        return float((scale * g.abs() * rule.value(z, targets(g))).sum())

    h = 1e-6
    for entry in range(0, 20, 3):
        row, column = divmod(entry, 4)
        with torch.no_grad():
            below.weight[row, column] += h
            upper = surrogate()
            below.weight[row, column] -= 2 * h
            lower = surrogate()
            below.weight[row, column] += h
        assert abs((upper - lower) / (2 * h) - float(below.weight.grad[row, column])) < 1e-7


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_values(rule: GradientRule) -> None:
    assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule
    assert hash(rule) == hash(copy.deepcopy(rule))
    with pytest.raises(AttributeError):
        rule.window = 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rules_keep_the_dtype(rule: GradientRule, dtype: torch.dtype) -> None:
    z, g = (t.to(dtype) for t in batch(8, 3))
    for unit in (Sign(rule), Staircase(3, rule), Staircase(3, rule, each=True)):
        found = descended(unit, z, g)
        assert found.dtype == unit(z).dtype == dtype
        assert bool(found.isfinite().all())


def test_numbers_out_of_range_are_refused() -> None:
    for make in (lambda: SaturatedSTE(0.0), lambda: SaturatedSTE(math.nan), lambda: ErrorDecay(0.0)):
        with pytest.raises(ValueError, match="must be"):
            make()
    with pytest.raises(TypeError, match="a rule is a value"):
        Sign("ste")  # type: ignore[arg-type]
    for odd in (3, functools.partial(torch.add), nn.MSELoss()):
        with pytest.raises(ValueError, match="give a function of a module"):
            PerUnitLoss(loss=odd)  # type: ignore[arg-type]
