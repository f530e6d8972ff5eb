"""How open a gated network is: the gates' answers, collected for the cost model."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import torch
from torch import Tensor, nn

from paring.core import Gate, Gated, Kind, gates
from paring.cost import Openness
from paring.gates.place import Site
from paring.graph import Layer, Wiring


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


def live(given: Openness, wiring: Wiring) -> Openness:
    """What is left of a support (zeros and ones) once units that compute nothing, or that nobody reads, have gone too.

    With gates on weights no unit closes by itself; it goes when all its weights are closed (what stays is a constant,
    which folds into the readers), or when no open weight reads it, and that is followed to the end.
    """
    if not given.weights:
        return given
    count = wiring.units + 1  # the last entry stands for the network's input
    units = {
        layer.name: given.units.get(layer.name, torch.ones(layer.outputs)) > 0
        for layer in wiring.layers
        if layer.gateable
    }
    masks = {name: _columns(weights, wiring.layer(name)) for name, weights in given.weights.items()}
    while True:
        opened = torch.ones(count, dtype=torch.bool)
        for name, alive in units.items():
            opened[wiring.layer(name).labels] = alive.cpu()
        read = torch.zeros(count, dtype=torch.bool)
        computed: dict[str, Tensor] = {}
        for layer in wiring.layers:
            rows = units[layer.name].cpu() if layer.name in units else torch.ones(layer.outputs, dtype=torch.bool)
            columns = opened[layer.sources] & (given.inputs.get(layer.name, torch.ones(layer.inputs)) > 0).cpu()
            mask = masks.get(layer.name)
            if mask is None or layer.groups > 1 or layer.kind == "embedding":
                used, computed[layer.name] = columns, rows
            else:
                used, computed[layer.name] = mask[rows].any(0) & columns, mask[:, columns].any(1)
            read[layer.sources[used]] = True
        fresh = {name: alive.cpu() & computed[name] & read[wiring.layer(name).labels] for name, alive in units.items()}
        if all(torch.equal(fresh[name], units[name].cpu()) for name in units):
            return Openness(
                units={**given.units, **{name: alive.double() for name, alive in fresh.items()}},
                inputs=given.inputs,
                weights=given.weights,
            )
        units = fresh


def _columns(weights: Tensor, layer: Layer) -> Tensor:
    """Which inputs each unit has an open weight for: (outputs, inputs), for ungrouped layers."""
    mask = (weights > 0).cpu()
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask
