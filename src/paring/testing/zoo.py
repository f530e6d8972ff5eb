"""One row per method: the conformance suite (`tests/test_every_method.py`) runs all of it on every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paring import relax, rules
from paring.core import Method, Stack
from paring.methods import (
    DNW,
    GMP,
    IMP,
    L0,
    SET,
    STR,
    AtInit,
    Budget,
    ConcreteDropout,
    ContinuousSparsification,
    Dense,
    EdgePopup,
    Masked,
    Price,
    RigL,
    Shrink,
    Slimming,
    SparseVD,
    Supermask,
)


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
    Row("imp", lambda: IMP(prunings=2, rate=0.4, to=4)),
    Row("gmp", lambda: GMP(density=0.3, every=5)),
    Row("gmp without recovery", lambda: GMP(density=0.3, every=5, recover=False, allocation=rules.Global())),
    Row("rigl", lambda: RigL(density=0.4, every=5)),
    Row("set", lambda: SET(density=0.4, every=5)),
    Row("dnw", lambda: DNW(density=0.4)),
    Row("random at initialisation", lambda: AtInit(score="random", density=0.4, allocation=rules.ErdosRenyi())),
    Row("synflow", lambda: AtInit(score="synflow", density=0.4, iterations=5)),
    Row("snip", lambda: AtInit(score="snip", density=0.4)),
    Row("grasp", lambda: AtInit(score="grasp", density=0.6)),
    Row("slimming", lambda: Slimming(density=0.5, rate=1e-3)),
    Row("masked", Masked),
    Row("continuous sparsification", lambda: ContinuousSparsification(rate=1e-4, to=4)),
    Row(
        "continuous sparsification to a density",
        lambda: ContinuousSparsification(density=0.3, searches=1, ticket="none", per="epoch", rescale=True, s0=-0.05),
    ),
    Row("soft threshold", lambda: STR(s_init=-4.0)),
    Row("sparse variational dropout", lambda: SparseVD(rate=1e-3, gate_lr=20.0)),
    Row("concrete dropout", lambda: ConcreteDropout(examples=100)),
    Row("supermask", lambda: Supermask(constant=True, gate_lr=10.0)),
    Row("supermask drawn at the end", lambda: Supermask(draw=0, rescale=True, gate_lr=10.0)),
    Row("edge popup", lambda: EdgePopup(constant=True)),
    Row("stack", lambda: Stack(L0(price=1e-3, at="units:Conv2d"), L0(price=1e-3, at="inputs:Linear"))),
)
