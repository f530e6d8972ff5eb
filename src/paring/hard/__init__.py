"""Hard-threshold networks: units, the rules by which they are trained, and feasible target propagation."""

from paring.hard.gradient_rules import (
    STE,
    ApproxSign,
    ErrorDecay,
    GradientRule,
    Hinge,
    LogLoss,
    PerUnitLoss,
    SaturatedSTE,
    SaturatingHinge,
    SoftHinge,
    UnitLoss,
    targets,
)
from paring.hard.learned_step import LearnedStep
from paring.hard.target_propagation import TargetPropagation
from paring.hard.target_search import ftprop
from paring.hard.units import SaturatedReLU, Sign, Staircase, sign, staircase, thresholds

__all__ = [
    "STE",
    "ApproxSign",
    "ErrorDecay",
    "GradientRule",
    "Hinge",
    "LearnedStep",
    "LogLoss",
    "PerUnitLoss",
    "SaturatedReLU",
    "SaturatedSTE",
    "SaturatingHinge",
    "Sign",
    "SoftHinge",
    "Staircase",
    "TargetPropagation",
    "UnitLoss",
    "ftprop",
    "sign",
    "staircase",
    "targets",
    "thresholds",
]
