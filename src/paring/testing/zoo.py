"""One row per method: the conformance suite (`tests/test_every_method.py`) runs all of it on every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paring import relax
from paring.core import Method, Stack
from paring.methods import L0, Budget, Dense, Price, Shrink


@dataclass(frozen=True)
class Row:
    """A method as the suite tries it.

    Args:
        name: of the test.
        make: a fresh method for a training of 40 steps that closes gates when it has any.
        gated: whether it puts gates in.
    """

    name: str
    make: Callable[[], Method]
    gated: bool = True


ZOO: tuple[Row, ...] = (
    Row("dense", Dense, gated=False),
    Row("l0 units", lambda: L0(price=1e-3, at="units")),
    Row("l0 inputs", lambda: L0(price=1e-3, at="inputs")),
    Row("l0 weights", lambda: L0(price=5e-3, at="weights")),
    Row("l0 several places", lambda: L0(price=Price(1e-3, of="macs"), at=("units:Conv2d", "inputs:Linear"))),
    Row("l0 per example", lambda: L0(price=1e-3, at="units", per_example=True)),
    Row("l0 budget", lambda: L0(price=Budget(params=0.4), at="units")),
    Row("l0 with l2 and prior", lambda: L0(price=1e-3, at="units", l2=1e-3, prior=0.2, kl=1e-3)),
    Row("l0 bernoulli", lambda: L0(price=1e-3, gate=relax.StraightThroughBernoulli())),
    Row("l0 rectified gaussian", lambda: L0(price=1e-3, gate=relax.RectifiedGaussian())),
    Row(
        "l0 shrinking",
        lambda: Stack(
            L0(price=Budget(params=0.4), at="units", hold=0.5),
            Shrink(every=5, multiple_of=1, saving=0.01, measure=False),
        ),
    ),
    Row(
        "l0 retiring",
        lambda: Stack(
            L0(price=1e-4, at=("units:Conv2d", "inputs:Linear"), gate_lr=40.0),
            Shrink(every=5, multiple_of=4, saving=0.01, measure=False, retire=0.2, patience=4),
        ),
    ),
    Row("stack", lambda: Stack(L0(price=1e-3, at="units:Conv2d"), L0(price=1e-3, at="inputs:Linear"))),
)
