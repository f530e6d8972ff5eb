"""A trained network, smaller at little or no loss: choose what goes by what it costs the loss, remove it, train on."""

from paring.pruning.importance import Fisher, Importance, Magnitude, Taylor
from paring.pruning.prune import prune
from paring.pruning.pruned import Pruned
from paring.pruning.search import Search
from paring.pruning.sensitivity import Sensitivity, sensitivity
from paring.pruning.teacher import Teacher
from paring.pruning.tune import Tune, tune

__all__ = [
    "Fisher", "Importance", "Magnitude", "Pruned", "Search", "Sensitivity", "Taylor", "Teacher", "Tune", "prune", "sensitivity",
    "tune",
]  # fmt: skip
