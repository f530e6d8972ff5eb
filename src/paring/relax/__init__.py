"""Relaxations of a binary gate, and what open gates cost. Pure functions on tensors; nothing here knows of networks."""

from paring.relax.base import Relaxation
from paring.relax.bernoulli import StraightThroughBernoulli
from paring.relax.concrete import Concrete
from paring.relax.hard_concrete import HardConcrete
from paring.relax.objective import expected_l0, expected_l2, spike_and_slab
from paring.relax.rectified import RectifiedGaussian, RectifiedLogistic

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
