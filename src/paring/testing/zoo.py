"""One row per method: the conformance suite (`tests/test_every_method.py`) runs all of it on every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paring import methods as m
from paring import select
from paring.core import Method, Stack
from paring.gates import relax
from paring.hard import ApproxSign, Hinge
from paring.testing.nets import Chain, ModuleChain, PackedChain


@dataclass(frozen=True)
class Row:
    """A method as the suite tries it.

    Args:
        name: of the test.
        make: a fresh method for a training of 40 steps that closes gates when it has any.
        gated: whether it puts gates in.
        net: the network it is tried on.
    """

    name: str
    make: Callable[[], Method]
    gated: bool = True
    net: Callable[[], Chain] = Chain


ZOO: tuple[Row, ...] = (
    Row("dense", m.Dense, gated=False),
    Row("l0 units", lambda: m.L0(price=1e-3, at="units")),
    Row("l0 inputs", lambda: m.L0(price=1e-3, at="inputs")),
    Row("l0 weights", lambda: m.L0(price=5e-3, at="weights")),
    Row("l0 several places", lambda: m.L0(price=m.Price(1e-3, of="macs"), at=("units:Conv2d", "inputs:Linear"))),
    Row("l0 per example", lambda: m.L0(price=1e-3, at="units", per_example=True)),
    Row("l0 budget", lambda: m.L0(price=m.Budget(params=0.4), at="units")),
    Row("l0 trained", lambda: m.L0(price=m.Budget(params=0.4), at="units", start="trained")),
    Row("l0 trained with a price", lambda: m.L0(price=1e-3, at=("units:Conv2d", "inputs:Linear"), start="trained")),
    Row(
        "l0 trained and shrinking",
        lambda: Stack(
            m.L0(price=m.Budget(params=0.4), at="units", start="trained", hold=0.5),
            m.Shrink(every=10, multiple_of=1, saving=0.01, measure=False),
        ),
    ),
    Row("l0 with l2 and prior", lambda: m.L0(price=1e-3, at="units", l2=1e-3, prior=0.2, kl=1e-3)),
    Row("l0 bernoulli", lambda: m.L0(price=1e-3, gate=relax.StraightThroughBernoulli())),
    Row("l0 rectified gaussian", lambda: m.L0(price=1e-3, gate=relax.RectifiedGaussian())),
    Row(
        "l0 shrinking",
        lambda: Stack(
            m.L0(price=m.Budget(params=0.4), at="units", hold=0.5),
            m.Shrink(every=5, multiple_of=1, saving=0.01, measure=False),
        ),
    ),
    Row(
        "l0 rewound and shrinking",
        lambda: Stack(
            m.L0(price=m.Budget(params=0.4), at="units", hold=m.Hold(0.5, rewind=4, drop=0.2)),
            m.Shrink(every=5, multiple_of=1, saving=0.01, measure=False),
        ),
    ),
    Row(
        "l0 retiring",
        lambda: Stack(
            m.L0(price=1e-4, at=("units:Conv2d", "inputs:Linear"), gate_lr=40.0),
            m.Shrink(every=5, multiple_of=4, saving=0.01, measure=False, retire=0.2, patience=4),
        ),
    ),
    Row("imp", lambda: m.IMP(prunings=2, rate=0.4, rewind=4)),
    Row("gmp", lambda: m.GMP(density=0.3, every=5)),
    Row("gmp without recovery", lambda: m.GMP(density=0.3, every=5, recover=False, allocation=select.Global())),
    Row("rigl", lambda: m.RigL(density=0.4, every=5)),
    Row("set", lambda: m.SET(density=0.4, every=5)),
    Row("dnw", lambda: m.DNW(density=0.4)),
    Row("random at initialisation", lambda: m.AtInit(score="random", density=0.4, allocation=select.ErdosRenyi())),
    Row("synflow", lambda: m.AtInit(score="synflow", density=0.4, iterations=5)),
    Row("snip", lambda: m.AtInit(score="snip", density=0.4)),
    Row("grasp", lambda: m.AtInit(score="grasp", density=0.6)),
    Row("slimming", lambda: m.Slimming(density=0.5, rate=1e-3)),
    Row("masked", m.Masked),
    Row("continuous sparsification", lambda: m.ContinuousSparsification(rate=1e-4, rewind=4)),
    Row(
        "continuous sparsification to a density",
        lambda: m.ContinuousSparsification(density=0.3, searches=1, ticket="none", per="epoch", rescale=True, s0=-0.05),
    ),
    Row("soft threshold", lambda: m.STR(s_init=-4.0)),
    Row("sparse variational dropout", lambda: m.SparseVD(rate=1e-3, gate_lr=20.0)),
    Row("concrete dropout", lambda: m.ConcreteDropout(examples=100)),
    Row("supermask", lambda: m.Supermask(constant=True, gate_lr=10.0)),
    Row("supermask drawn at the end", lambda: m.Supermask(draw=0, rescale=True, gate_lr=10.0)),
    Row("edge popup", lambda: m.EdgePopup(constant=True)),
    Row("binary weights", lambda: m.Binarize(activations="none", keep_first=False)),
    Row("staircase network", lambda: m.Binarize("staircase", "none", rule=Hinge()), gated=False, net=ModuleChain),
    Row("binary network", lambda: m.Binarize(weights="sign", rule=ApproxSign()), net=ModuleChain),
    Row("learned steps and binary weights", lambda: m.Binarize("learned_step", keep_last=False), net=ModuleChain),
    Row(
        "binary network losing units",
        lambda: Stack(
            m.Binarize("staircase"),
            m.L0(price=m.Budget(params=0.4), at="units", hold=0.5),
            m.Shrink(every=5, multiple_of=1, saving=0.01, measure=False),
        ),
        net=ModuleChain,
    ),
    Row("l0 packed weights", lambda: m.L0(price=5e-3, at="weights"), net=PackedChain),
    Row("imp packed weights", lambda: m.IMP(prunings=2, rate=0.4, rewind=4), net=PackedChain),
    Row("gmp packed weights", lambda: m.GMP(density=0.3, every=5, allocation=select.ErdosRenyi()), net=PackedChain),
    Row("rigl packed weights", lambda: m.RigL(density=0.4, every=5), net=PackedChain),
    Row("grasp packed weights", lambda: m.AtInit(score="grasp", density=0.6), net=PackedChain),
    Row("soft threshold packed weights", lambda: m.STR(s_init=-4.0), net=PackedChain),
    Row("edge popup packed weights", m.EdgePopup, net=PackedChain),
    Row("sparse variational dropout packed weights", lambda: m.SparseVD(rate=1e-3, gate_lr=20.0), net=PackedChain),
    Row("l0 hidden units", lambda: m.L0(price=m.Budget(params=0.5), at="units"), net=PackedChain),
    Row("l0 blocks", lambda: m.L0(price=m.Budget(macs=0.8), at="blocks"), net=PackedChain),
    Row(
        "l0 blocks and more",
        lambda: m.L0(price=1e-3, at=("blocks", "units:fc1", "weights:GRUCell")),
        net=PackedChain,
    ),
    Row("stack", lambda: Stack(m.L0(price=1e-3, at="units:Conv2d"), m.L0(price=1e-3, at="inputs:Linear"))),
)
