"""How open a gated network is: the gates' answers, collected for the cost model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from paring.core import Gate, Gated, Kind, Spread, gated_layers
from paring.cost import Openness
from paring.gates.coupled import entries, group_of, labels_of
from paring.gates.place import Site
from paring.graph import Group, Layer, Wiring


def gate_of(net: nn.Module, site: Site) -> Gate:
    """The gate that sits at `site` in this network.

    Raises:
        ValueError: there is none (the gates were released, or this is another network).
    """
    module = attrgetter(site.module)(net) if site.module else net
    gate = module.gates().get(site.kind) if isinstance(module, Gated) else None
    if isinstance(gate, Spread) and site.taps:
        row = next(row for row, entry in enumerate(site.taps[0].index) if entry >= 0)
        gate = gate.part_at(row)
    if gate is None:
        raise ValueError(
            f"'{site.module}' carries no gate at '{site.kind}': were the gates already folded into the weights?"
        )
    return gate


def openness(net: nn.Module, wiring: Wiring, ask: Callable[[Gate], Tensor]) -> Openness:
    """Collect `ask(gate)` (for example `lambda gate: gate.chance()`, differentiable) of every gate into an `Openness`.

    A unit gate on a norm speaks for the layer in front of it, a gate of several modules for all layers of its group.
    `wiring` is that of the network before anything was cut out of it while training; what was cut counts as closed.
    """
    behind = {layer.norm: layer.name for layer in wiring.layers if layer.norm is not None}
    found: dict[Kind, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}}
    for name, layer in gated_layers(net):
        for kind, gate in layer.gates().items():
            if not isinstance(gate, Spread):
                found[kind][behind.get(name, name)] = gate.whole(ask(gate))
    for gate, group in _shared(net, wiring):
        _tell_group(found["units"], wiring, group, gate.whole(ask(gate)))
    return Openness(units=found["units"], inputs=found["inputs"], weights=found["weights"])


def tied(net: nn.Module, wiring: Wiring, ask: Callable[[Gate], Tensor]) -> dict[str, Tensor]:
    """Openness of the units of layers and norms that belong to groups, by name, for the units left now."""
    shared = [(gate, group, gate.whole(ask(gate))) for gate, group in _shared(net, wiring)]
    found: dict[str, Tensor] = {}
    for module in wiring.parts:
        left = torch.ones(len(module.labels), dtype=torch.bool)
        for gate, group, value in shared:
            position = entries(group, module.name, wiring)
            if bool((position >= 0).any()):
                old = found.get(module.name, value.new_ones(len(module.labels)))
                found[module.name] = torch.where((position >= 0).to(value.device), value[position.clamp(min=0)], old)
                kept = gate.whole(torch.ones(gate.shape)) > 0
                left &= (position < 0) | kept[position.clamp(min=0)]
        if module.name in found:
            found[module.name] = found[module.name][left]
    return found


def _shared(net: nn.Module, wiring: Wiring) -> list[tuple[Gate, Group]]:
    """Gates of several modules, each with the group for which it speaks."""
    found: dict[int, tuple[Gate, Group]] = {}
    for name, layer in gated_layers(net):
        if isinstance(layer.unit_gate, Spread):
            for gate, rows, _ in layer.unit_gate.entries():
                if id(gate) not in found:
                    found[id(gate)] = gate, group_of(int(labels_of(name, wiring)[int(rows[0])]), wiring)
    return list(found.values())


def replaced(given: Openness, wiring: Wiring, sites: Sequence[Site], values: Sequence[Tensor]) -> Openness:
    """`given` with other values for the gates at `sites`."""
    found: dict[Kind, dict[str, Tensor]] = {
        "units": dict(given.units),
        "inputs": dict(given.inputs),
        "weights": dict(given.weights),
    }
    for site, value in zip(sites, values, strict=True):
        if not site.taps:
            found[site.kind][site.layer] = value
            continue
        row = next(row for row, entry in enumerate(site.taps[0].index) if entry >= 0)
        group = group_of(int(labels_of(site.taps[0].module, wiring)[row]), wiring)
        _tell_group(found["units"], wiring, group, value)
    return Openness(units=found["units"], inputs=found["inputs"], weights=found["weights"])


def _tell_group(units: dict[str, Tensor], wiring: Wiring, group: Group, value: Tensor) -> None:
    """Write a group's openness into that of every layer with a row of it."""
    for name in group.layers:
        position = entries(group, name, wiring).to(value.device)
        old = units.get(name, value.new_ones(len(position)))
        units[name] = torch.where(position >= 0, value[position.clamp(min=0)], old.to(value))


def expected(gate: Gate) -> Tensor:
    """The gate's chance, for `openness(net, wiring, expected)`."""
    return gate.chance()


def support(gate: Gate) -> Tensor:
    """The gate's support as numbers, for `openness(net, wiring, support)`."""
    return gate.support().double()


def live(given: Openness, wiring: Wiring) -> Openness:
    """What is left of a support (zeros and ones) once units that compute nothing, or that nobody reads, have gone too.

    With gates on weights no unit closes by itself; it goes when all its weights are closed (what stays is a constant,
    which folds into the readers), or when no open weight reads it, and that is followed to the end. Units that are
    tied to others go when none of them computes anything, or nobody reads them.
    """
    if not given.weights:
        return given
    fixed = torch.ones(wiring.units + 1, dtype=torch.bool)  # the last entry stands for the network's input
    for layer in wiring.layers:
        fixed[layer.labels] = not layer.gateable
    if wiring.fixed is not None:
        fixed[:-1] = wiring.fixed
    met = torch.zeros_like(fixed)
    for product in wiring.products:
        if product.meets:  # queries and keys are read by each other
            met[product.left] = met[product.right] = True
    opened = torch.ones_like(fixed)
    for name, alive in given.units.items():
        opened[wiring.layer(name).labels] = alive.cpu() > 0
    masks = {name: _columns(weights, wiring.layer(name)) for name, weights in given.weights.items()}
    while True:
        read, computed = met.clone(), torch.zeros_like(opened)
        for layer in wiring.layers:
            rows = opened[layer.labels]
            columns = opened[layer.sources] & (given.inputs.get(layer.name, torch.ones(layer.inputs)) > 0).cpu()
            mask = masks.get(layer.name)
            if mask is None or layer.groups > 1 or layer.kind == "embedding":
                used = columns
            else:
                used, rows = mask[rows].any(0) & columns, mask[:, columns].any(1)
            read[layer.sources[used]] = True
            computed[layer.labels[rows]] = True
        fresh = opened & (fixed | (computed & read))
        if torch.equal(fresh, opened):
            break
        opened = fresh
    units = dict(given.units)
    for layer in wiring.layers:
        if not bool(fixed[layer.labels].all()):
            units[layer.name] = opened[layer.labels].double()
    return Openness(units=units, inputs=given.inputs, weights=given.weights)


def _columns(weights: Tensor, layer: Layer) -> Tensor:
    """Which inputs each unit has an open weight for: (outputs, inputs), for ungrouped layers."""
    mask = (weights > 0).cpu()
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask
