"""Cost: what a network takes in parameters, arithmetic, bytes and time, expected or actual."""

from paring.cost.actual import Measured, ModuleCost, measure
from paring.cost.compare import Comparison, compare, compare_times
from paring.cost.count import Cost, CostModel, LayerCost, Openness
from paring.cost.latency import Latency, latency, ratio
from paring.cost.report import CostReport, report

__all__ = [
    "Comparison",
    "Cost",
    "CostModel",
    "CostReport",
    "Latency",
    "LayerCost",
    "Measured",
    "ModuleCost",
    "Openness",
    "compare",
    "compare_times",
    "latency",
    "measure",
    "ratio",
    "report",
]
