"""Gates, the places where they go, and how open they are."""

from paring.gates.groups import Groups, groups
from paring.gates.obstacle import carrier_of
from paring.gates.openness import expected, gate_of, live, openness, replaced, support, tied
from paring.gates.place import Place, Site, put_gate, sites
from paring.gates.stochastic import StochasticGate

__all__ = [
    "Groups",
    "Place",
    "Site",
    "StochasticGate",
    "carrier_of",
    "expected",
    "gate_of",
    "groups",
    "live",
    "openness",
    "put_gate",
    "replaced",
    "sites",
    "support",
    "tied",
]
