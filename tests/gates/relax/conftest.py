"""The relaxations that every test of this folder runs over."""

from __future__ import annotations

import pytest

from paring.gates.relax import (
    Concrete,
    HardConcrete,
    RectifiedGaussian,
    RectifiedLogistic,
    Relaxation,
    StraightThroughBernoulli,
)

GATES: list[Relaxation] = [
    HardConcrete(),
    HardConcrete(0.5, -0.3, 1.05, test="median"),
    HardConcrete(2.5, -0.02, 1.5),
    Concrete(),
    Concrete(beta=1.6, threshold=0.2),
    RectifiedGaussian(),
    RectifiedGaussian(1.3),
    RectifiedLogistic(),
    RectifiedLogistic(0.8),
    StraightThroughBernoulli(),
]


@pytest.fixture(scope="session", params=GATES, ids=repr)
def gate(request: pytest.FixtureRequest) -> Relaxation:
    """Each relaxation in turn."""
    found: Relaxation = request.param
    return found


@pytest.fixture(scope="session", params=GATES[:-1], ids=repr)
def continuous(request: pytest.FixtureRequest) -> Relaxation:
    """Each relaxation that has a density."""
    found: Relaxation = request.param
    return found
