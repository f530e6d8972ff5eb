"""Gates, the places where they go, and how open they are."""

from paring.gates.openness import expected, gate_of, live, openness, support
from paring.gates.place import Place, Site, sites
from paring.gates.stochastic import StochasticGate

__all__ = ["Place", "Site", "StochasticGate", "expected", "gate_of", "live", "openness", "sites", "support"]
