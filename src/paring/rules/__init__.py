"""Pieces that pruning methods are put together from: score, schedule, allocation, structure, each a value of its own."""

from paring.rules.allocation import Allocation, ErdosRenyi, Given, Global, Uniform
from paring.rules.highest import top
from paring.rules.regrow import Exchange, exchange, no_exchanges
from paring.rules.schedule import CosineDrop, Cubic, Geometric
from paring.rules.score import Loss, grasp, magnitude, random, snip, synflow
from paring.rules.structure import NM, Blocks, Structure, Units, Weights, masks

__all__ = [
    "NM",
    "Allocation",
    "Blocks",
    "CosineDrop",
    "Cubic",
    "ErdosRenyi",
    "Exchange",
    "Geometric",
    "Given",
    "Global",
    "Loss",
    "Structure",
    "Uniform",
    "Units",
    "Weights",
    "exchange",
    "grasp",
    "magnitude",
    "masks",
    "no_exchanges",
    "random",
    "snip",
    "synflow",
    "top",
]
