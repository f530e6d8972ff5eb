"""Pieces that pruning methods are put together from: score, schedule, allocation, structure, each a value of its own."""

from paring.select.allocation import Allocation, ErdosRenyi, Given, Global, Uniform
from paring.select.highest import top
from paring.select.regrow import Exchange, exchange, no_exchanges
from paring.select.schedule import CosineDrop, Cubic, Geometric
from paring.select.score import Loss, grasp, magnitude, random, snip, synflow
from paring.select.structure import NM, Blocks, Structure, Units, Weights, masks

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
