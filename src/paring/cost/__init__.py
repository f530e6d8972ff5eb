"""Cost: what a network takes in parameters, arithmetic, bytes and time, expected or actual."""

from paring.cost.actual import Measured, ModuleCost, measure
from paring.cost.cost_report import CostReport, report
from paring.cost.count import Cost, CostModel, LayerCost, Openness
from paring.cost.latency import Latency, latency, ratio
from paring.cost.peak_memory import peak_memory
from paring.cost.speed_up import Comparison, compare, compare_times

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
    "peak_memory",
    "ratio",
    "report",
]
