"""Hard-threshold units: sign, staircases and the saturated ReLU, with the gradient rule as a value.

    Sign             h = +1 where x > 0, else -1, so sign(0) = -1
    Staircase(n)     h = clip(⌈(n - 1) x⌉, 0, n) / n: n steps of 1/n, at x = 0, 1/(n - 1), ..., 1; on a step the lower value
    SaturatedReLU    h = min(max(x, 0), 1)

(Friesen and Domingos, ICLR 2018, arXiv 1710.11573; "qReLU" there is the staircase.) Staircase(3) has the levels 0, 1/3, 2/3, 1
(2 bits), Staircase(5) six levels, which the authors call 3 bits.

Rules (`paring.hard.gradient_rules`) know units in centred coordinates, [-1, 1] → [-1, 1]. For the sign these are x and h; for a
staircase z = 2x - 1 and 2h - 1, both of slope 2, so that ∂loss/∂x = rule(2x - 1, G): the whole staircase is one
soft step, as in the authors' code. With `each` the loss sits at every step θ_k instead: a sum of n sign units of
the height 1/n, ∂loss/∂x = 1/n Σ_k rule(2(x - θ_k), G).

A NaN comes out as a NaN. Everything keeps the dtype of its input. `saved_as` goes into saved files, from which `paring.load`
makes them again, with the default rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paring.files.rebuild import UNITS
from paring.hard.gradient_rules import GradientRule, SoftHinge


class _HardUnit(torch.autograd.Function):
    """steps = 0 is the sign, n > 0 a staircase of n steps."""

    @staticmethod
    def forward(x: Tensor, steps: int, rule: GradientRule, each: bool) -> Tensor:
        if steps == 0:
            return torch.ceil(x).clamp(0, 1) * 2 - 1
        # one step stands at 0, where (n - 1) x would be 0 everywhere
        return torch.ceil(x * max(1, steps - 1)).clamp(0, steps) / steps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, GradientRule, bool], output: Tensor) -> None:
        x, ctx.steps, ctx.rule, ctx.each = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return _descended(x, gradients[0], ctx.steps, ctx.rule, ctx.each), None, None, None


def _descended(x: Tensor, gradient: Tensor, steps: int, rule: GradientRule, each: bool) -> Tensor:
    if steps == 0:
        return rule.descend(x, gradient)
    if not each:
        return rule.descend(2 * x - 1, gradient)
    total = torch.zeros_like(gradient)
    for step in thresholds(steps):
        total = total + rule.descend(2 * (x - step), gradient) / steps
    return total


def thresholds(steps: int) -> tuple[float, ...]:
    """Where a staircase of so many steps rises: 0, 1/(n - 1), ..., 1; at 0 alone for one step."""
    return tuple(k / max(1, steps - 1) for k in range(steps))


def sign(x: Tensor, rule: GradientRule) -> Tensor:
    """+1 where x > 0, else -1, with the gradient of `rule`."""
    result: Tensor = _HardUnit.apply(x, 0, rule, False)  # type: ignore[no-untyped-call]
    return result


def staircase(x: Tensor, steps: int, rule: GradientRule, *, each: bool = False) -> Tensor:
    """clip(⌈(n - 1) x⌉, 0, n) / n for n = `steps`, with the gradient of `rule`."""
    result: Tensor = _HardUnit.apply(x, steps, rule, each)  # type: ignore[no-untyped-call]
    return result


class Sign(nn.Module):
    """+1 where x > 0, else -1. Any shape, batch first.

    Args:
        rule: its gradient; FTP-SH by default.
    """

    saved_as = ("sign",)

    def __init__(self, rule: GradientRule | None = None) -> None:
        super().__init__()
        self.rule = _checked("Sign", rule)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.rule)

    def extra_repr(self) -> str:
        return f"rule={self.rule}"


class Staircase(nn.Module):
    """A staircase from 0 to 1, by default of three steps (2 bits). Any shape, batch first.

    Args:
        steps: how many, at least 1.
        rule: its gradient; FTP-SH by default.
        each: put the rule at every step instead of at the whole staircase.

    Raises:
        ValueError: fewer than one step.
    """

    def __init__(self, steps: int = 3, rule: GradientRule | None = None, *, each: bool = False) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Staircase(steps={steps!r}): a whole number, at least 1; 3 steps have 4 levels, 2 bits")
        self.steps = steps
        self.each = each
        self.rule = _checked("Staircase", rule)
        self.saved_as = ("staircase", steps)

    def forward(self, x: Tensor) -> Tensor:
        return staircase(x, self.steps, self.rule, each=self.each)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, rule={self.rule}, each={self.each}"


class SaturatedReLU(nn.Module):
    """min(max(x, 0), 1), with its own gradient (one at both kinks): what a staircase of many steps becomes."""

    saved_as = ("saturated_relu",)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


UNITS.update(sign=Sign, staircase=Staircase, saturated_relu=SaturatedReLU)


def _checked(name: str, rule: GradientRule | None) -> GradientRule:
    if rule is None:
        return SoftHinge()
    if not isinstance(rule, GradientRule):
        raise TypeError(
            f"{name}(rule={rule!r}): a rule is a value such as SoftHinge() or SaturatedSTE(), see paring.hard"
        )
    return rule
