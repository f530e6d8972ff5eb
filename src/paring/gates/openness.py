"""How open a gated network is: the gates' answers, collected for the cost model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from paring.analysis import Group, Wiring
from paring.core import Gate, Gated, PlaceKind, SharedGate, gated_layers, packed_name
from paring.cost import Openness
from paring.gates.coupled import columns_of, entries, group_of, labels_of
from paring.gates.place import Site


def gate_of(net: nn.Module, site: Site) -> Gate:
    """The gate that sits at `site` in this network.

    Raises:
        ValueError: there is none (the gates were released, or this is another network).
    """
    module = attrgetter(site.module)(net) if site.module else net
    kind = site.mounts[0].place if site.mounts else site.kind
    gate: Gate | None = None
    if isinstance(module, Gated):
        leaf = site.mounts[0].leaf if site.mounts else site.leaf
        gate = module.at_weights().get(leaf) if kind == "weights" else module.gates().get(kind)
    if isinstance(gate, SharedGate) and site.mounts:
        row = next(row for row, entry in enumerate(site.mounts[0].index) if entry >= 0)
        gate = gate.part_at(row)
    if gate is None:
        raise ValueError(
            f"'{site.module}' carries no gate at '{site.kind}': were the gates already folded into the weights?"
        )
    return gate


def openness(net: nn.Module, wiring: Wiring, ask: Callable[[Gate], Tensor]) -> Openness:
    """Collect `ask(gate)` (for example `lambda gate: gate.prob_open()`, differentiable) of every gate into an `Openness`.

    A unit gate on a norm speaks for the layer in front of it, a gate of several modules for all layers of its group.
    `wiring` is that of the network before anything was cut out of it while training; what was cut counts as closed.
    """
    behind = {layer.norm: layer.name for layer in wiring.layers if layer.norm is not None}
    found: dict[PlaceKind, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}, "blocks": {}}
    branches = {carrier: branch.name for branch in wiring.branches for carrier in branch.carriers}
    for name, layer in gated_layers(net):
        for kind, leaf, gate in layer.held():
            if kind == "blocks":
                carrier = next(one for one in (name, f"{name}.out_proj", "out_proj") if one in branches)
                part = next(gate.gates()) if isinstance(gate, SharedGate) else gate
                found[kind][branches[carrier]] = part.whole(ask(part))
            elif not isinstance(gate, SharedGate):
                told = packed_name(name, leaf) if leaf else behind.get(name, name)
                found[kind][told] = gate.whole(ask(gate))
    for gate, group in _shared(net, wiring):
        _tell_group(found["units"], wiring, group, gate.whole(ask(gate)))
    return Openness(found["units"], found["inputs"], found["weights"], found["blocks"])


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
        for kind, held in layer.gates().items():
            for gate, rows, _ in held.entries() if isinstance(held, SharedGate) and kind != "blocks" else ():
                if id(gate) not in found:
                    found[id(gate)] = gate, group_of(int(labels_of(name, wiring, kind)[int(rows[0])]), wiring)
        for leaf, sliced in layer.at_weights().items():
            ids = columns_of(name, leaf, wiring) if isinstance(sliced, SharedGate) else torch.zeros(0)
            for gate, rows, _ in sliced.entries() if isinstance(sliced, SharedGate) and len(ids) else ():
                if id(gate) not in found:
                    found[id(gate)] = gate, group_of(int(ids[int(rows[0])]), wiring)
    return list(found.values())


def replaced(given: Openness, wiring: Wiring, sites: Sequence[Site], values: Sequence[Tensor]) -> Openness:
    """`given` with other values for the gates at `sites`."""
    found: dict[PlaceKind, dict[str, Tensor]] = {
        "units": dict(given.units),
        "inputs": dict(given.inputs),
        "weights": dict(given.weights),
        "blocks": dict(given.blocks),
    }
    for site, value in zip(sites, values, strict=True):
        if not site.mounts or site.kind == "blocks":
            found[site.kind][site.layer] = value
            continue
        group = group_of(site.mounts[0].first_id(wiring), wiring)
        _tell_group(found["units"], wiring, group, value)
    return Openness(found["units"], found["inputs"], found["weights"], found["blocks"])


def _tell_group(units: dict[str, Tensor], wiring: Wiring, group: Group, value: Tensor) -> None:
    """Write a group's openness into that of every layer with a row of it."""
    for name in group.layers:
        position = entries(group, name, wiring).to(value.device)
        old = units.get(name, value.new_ones(len(position)))
        units[name] = torch.where(position >= 0, value[position.clamp(min=0)], old.to(value))


def expected(gate: Gate) -> Tensor:
    """The gate's chance, for `openness(net, wiring, expected)`."""
    return gate.prob_open()


def support(gate: Gate) -> Tensor:
    """The gate's support as numbers, for `openness(net, wiring, support)`."""
    return gate.support().double()
