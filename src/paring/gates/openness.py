"""How open a gated network is: the gates' answers, collected for the cost model."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from torch import Tensor, nn

from paring.core import Gate, Gated, Kind, gates
from paring.cost import Openness
from paring.gates.place import Site
from paring.graph import Wiring


def gate_of(net: nn.Module, site: Site) -> Gate:
    """The gate that sits at `site` in this network.

    Raises:
        ValueError: there is none (the gates were released, or this is another network).
    """
    module = attrgetter(site.module)(net) if site.module else net
    gate = module.gates().get(site.kind) if isinstance(module, Gated) else None
    if gate is None:
        raise ValueError(
            f"'{site.module}' carries no gate at '{site.kind}': were the gates already folded into the weights?"
        )
    return gate


def openness(net: nn.Module, wiring: Wiring, ask: Callable[[Gate], Tensor]) -> Openness:
    """Collect `ask(gate)` (for example `lambda gate: gate.chance()`, differentiable) of every gate into an `Openness`.

    A unit gate on a norm speaks for the layer in front of it.
    """
    behind = {layer.norm: layer.name for layer in wiring.layers if layer.norm is not None}
    found: dict[Kind, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}}
    for name, kind, gate in gates(net):
        found[kind][behind.get(name, name)] = ask(gate)
    return Openness(units=found["units"], inputs=found["inputs"], weights=found["weights"])


def expected(gate: Gate) -> Tensor:
    """The gate's chance, for `openness(net, wiring, expected)`."""
    return gate.chance()


def support(gate: Gate) -> Tensor:
    """The gate's support as numbers, for `openness(net, wiring, support)`."""
    return gate.support().double()
