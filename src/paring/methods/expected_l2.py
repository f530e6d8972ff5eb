"""The L2 term that counts a weight only while its gates are open (Louizos, Welling, Kingma 2018, eq. 15 and 17)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.analysis import Wiring
from paring.core import Gate, Kind, PlaceKind, SharedGate, gated_layers, kind_of
from paring.gates import carrier_of, openness, tied
from paring.gates.coupled import stretches


def expected_l2_of(net: nn.Module, wiring: Wiring, *, detach: bool = False) -> Tensor:
    """(1/2) Σ P(open) θ² over all weights and biases of gated layers and θ² over all other parameters (eq. 15, 17).

    A unit gate on a norm stands for the weights of the layer in front of it as well, a gate of several modules for the
    weights and norms of all layers of its group.

    Args:
        net: a gated network.
        wiring: its wiring.
        detach: leave the gates out of the gradient.
    """
    behind = {layer.norm: layer.name for layer in wiring.layers if layer.norm is not None}
    modules = dict(net.named_modules())
    probs: dict[str, dict[PlaceKind, Tensor]] = {}
    packed: dict[str, Tensor] = {}
    own: set[int] = set()
    branches = _in_branches(net, wiring, detach)

    def ask(gate: Gate) -> Tensor:
        return gate.prob_open().detach() if detach else gate.prob_open()

    for name, layer in gated_layers(net):
        for kind, leaf, gate in layer.held():
            if leaf and gate is not layer.weight_gate:
                _also(packed, f"{name}.{leaf}" if name else leaf, ask(gate))
            elif kind != "blocks" and not (kind == "units" and _packs(layer)):
                probs.setdefault(name, {})[kind] = ask(gate)
            if kind != "blocks" and name in behind and not isinstance(gate, SharedGate):
                probs.setdefault(behind[name], {})[kind] = ask(gate)
            own |= {id(p) for p in gate.parameters()}
    shared = tied(net, wiring, ask)
    for name, prob in shared.items():
        if name in modules:
            probs.setdefault(name, {})["units"] = prob
    for name in dict.fromkeys(carrier_of(name, modules) for name in shared if name not in modules):
        known, layer = kind_of(modules[name]), modules[name]
        assert known is not None
        assert known.units is not None
        assert known.unit_factors is not None
        chances = next(iter(shared.values())).new_ones(known.units(layer))
        for part, start in stretches(name, wiring):
            if part in shared:
                chances[start : start + len(shared[part])] = shared[part]
        for leaf, prob in known.unit_factors(layer, chances, candidates=False).items():
            _also(packed, f"{name}.{leaf}" if name else leaf, prob)
    total: list[Tensor] = []
    for name, found in probs.items():
        known = kind_of(modules[name])
        assert known is not None
        for leaf in dict.fromkeys((*known.scaled, *known.per_unit)):
            parameter = getattr(modules[name], leaf, None)
            if parameter is not None and leaf not in modules[name]._buffers:
                own.add(id(parameter))
                square = parameter.pow(2) * branches.get(id(parameter), 1.0)
                if (full := f"{name}.{leaf}" if name else leaf) in packed:
                    square = square * packed.pop(full)
                total.append(_weighted(known, modules[name], leaf, square, found).sum())
    for name, prob in packed.items():
        parameter = net.get_parameter(name)
        own.add(id(parameter))
        total.append((parameter.pow(2) * prob).sum() * branches.get(id(parameter), 1.0))
    total += [p.pow(2).sum() * branches.get(id(p), 1.0) for p in net.parameters() if id(p) not in own]
    return 0.5 * torch.stack(total).sum()


def _packs(layer: nn.Module) -> bool:
    """Whether its units lie in several weights."""
    known = kind_of(layer)
    return known is not None and known.unit_factors is not None


def _also(found: dict[str, Tensor], name: str, prob: Tensor) -> None:
    """One more gate that a parameter needs."""
    found[name] = found[name] * prob if name in found else prob


def _in_branches(net: nn.Module, wiring: Wiring, detach: bool) -> dict[int, Tensor]:
    """P(open) of the residual branches that a parameter is in, their product, by its id."""
    found: dict[int, Tensor] = {}
    held = dict(net.named_parameters())
    for name, prob in openness(net, wiring, lambda gate: gate.prob_open()).blocks.items():
        branch = next(one for one in wiring.branches if one.name == name)
        for parameter in (held[member] for member in branch.members if member in held):
            chance = (prob.detach() if detach else prob).sum()
            found[id(parameter)] = found[id(parameter)] * chance if id(parameter) in found else chance
    return found


def _weighted(kind: Kind, layer: nn.Module, leaf: str, square: Tensor, probs: dict[PlaceKind, Tensor]) -> Tensor:
    """The squares of a weight or another parameter of units, each times the prob that everything it needs is open."""
    if leaf == kind.scaled[0]:
        if "weights" in probs:
            square = square * probs["weights"]
        if "inputs" in probs:
            square = square * kind.along_inputs(layer, probs["inputs"])
    units = probs.get("units")
    return square if units is None else square * kind.along_units(layer, leaf, units)
