"""A trained network, smaller at little or no loss: choose what goes by what it costs the loss, remove it, train on."""

from paring.prune.importance import Fisher, Importance, Magnitude, Taylor
from paring.prune.outcome import Outcome
from paring.prune.prune import Search, prune
from paring.prune.teacher import Teacher
from paring.prune.tune import Tune, tune

__all__ = ["Fisher", "Importance", "Magnitude", "Outcome", "Search", "Taylor", "Teacher", "Tune", "prune", "tune"]
