"""Relaxations of a binary gate, and what open gates cost. Pure functions on tensors; nothing here knows of networks."""

from paring.gates.relax.bernoulli import StraightThroughBernoulli
from paring.gates.relax.concrete import Concrete
from paring.gates.relax.expected_costs import expected_l0, expected_l2, spike_and_slab
from paring.gates.relax.hard_concrete import HardConcrete
from paring.gates.relax.rectified import RectifiedGaussian, RectifiedLogistic
from paring.gates.relax.relaxation import Relaxation

__all__ = [
    "Concrete",
    "HardConcrete",
    "RectifiedGaussian",
    "RectifiedLogistic",
    "Relaxation",
    "StraightThroughBernoulli",
    "expected_l0",
    "expected_l2",
    "spike_and_slab",
]
