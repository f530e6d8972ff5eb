"""A copy of the network with a gate for every unit that may go, and what its units cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from paring.analysis import Wiring, wiring
from paring.core import At, Inputs, Refusal, gated_layers, kind_of
from paring.core.fresh import refresh
from paring.cost import Cost, CostModel, Openness
from paring.gates import Site, live, put_gate, replaced, sites
from paring.gates.place import site_of
from paring.pruning.probe_gate import ProbeGate


class Share(Protocol):
    """A cost beyond parameters and MACs, at other widths."""

    def share(self, cost: Cost) -> Tensor:
        """What is left of the dense network's, a 0-dim tensor, differentiable as the cost is."""
        ...


@dataclass(frozen=True)
class GatedCopy:
    """A network with gates that can be closed.

    Attributes:
        net: the copy, in eval mode.
        example: what it was captured with.
        wiring: its layers and who reads whom.
        sites: where the gates are.
        gates: one for each site.
        model: what it costs.
        further: what else was asked for, by the name of the cost.
    """

    net: nn.Module
    example: Inputs
    wiring: Wiring
    sites: tuple[Site, ...]
    gates: tuple[ProbeGate, ...]
    model: CostModel
    further: Mapping[str, Share] = field(default_factory=dict)

    @classmethod
    def of(cls, net: nn.Module, example: Inputs, at: At) -> GatedCopy:
        """A copy of a plain network, gated at these places.

        Raises:
            CaptureError: the network cannot be captured.
            ValueError: nothing in it can be gated, or a place is unknown.
        """
        net = refresh(copy.deepcopy(net).eval())
        found = wiring(net, example, dead=True)
        model, where = CostModel.of(net, found), sites(net, found, at)
        modules, gates = dict(net.named_modules()), []
        for site in where:
            carriers = [modules[name] for name in {site.module, *(mount.module for mount in site.mounts)}]
            weight = next(carriers[0].parameters())
            apart = not any((kind := kind_of(one)) is not None and kind.packed(one) for one in carriers)
            apart = apart and not (
                site.mounts and all(mount.leaf for mount in site.mounts)
            )  # parameters have no examples
            gate = ProbeGate(site.shape, apart=apart, device=weight.device, dtype=weight.dtype)
            put_gate(modules, site, gate)
            gates.append(gate)
        net.eval()
        return cls(net, example, found, where, tuple(gates), model)

    @property
    def sizes(self) -> list[int]:
        """Gates of each site."""
        return [gate.mask.numel() for gate in self.gates]

    @cached_property
    def heads(self) -> list[bool]:
        """Of each site, whether its gates close heads of attention."""
        found = {layer for group in self.wiring.groups if group.heads for layer in group.layers}
        return [site.layer in found for site in self.sites]

    @property
    def units(self) -> int:
        """All gates."""
        return sum(self.sizes)

    @cached_property
    def begin(self) -> Tensor:
        """Which gates are open in the beginning, (units,): not those of units that are zero or unread already. One of each site is."""
        dead = self.wiring.dead
        if dead is None:
            return torch.ones(self.units, dtype=torch.bool)
        masks = []
        for number, (site, size) in enumerate(zip(self.sites, self.sizes, strict=True)):
            open_ = torch.full((size,), site.kind != "units")
            for name, entry in self.entries(number).items() if site.kind == "units" else ():
                open_[entry[(entry >= 0) & ~dead[self.wiring.layer(name).labels]]] = True
            open_[0] |= not bool(open_.any())
            masks.append(open_)
        return torch.cat(masks)

    def split(self, values: Tensor) -> list[Tensor]:
        """One vector over all gates, by site and in its shape."""
        return [part.view(gate.shape) for part, gate in zip(values.split(self.sizes), self.gates, strict=True)]

    def openness(self, values: Tensor) -> Openness:
        """What these values of all gates, (units,), mean for the layers."""
        padded = torch.cat([values, values.new_ones(1)])  # the last is for units without a gate
        units, inputs, weights, blocks = ({name: padded[entry] for name, entry in kind.items()} for kind in self._index)
        return Openness(units, inputs, weights, blocks)

    @cached_property
    def _index(self) -> list[dict[str, Tensor]]:
        """For units, inputs, weights and blocks: layer -> for each entry its gate, -1 for none."""
        numbers = torch.arange(self.units, dtype=torch.double) + 2  # where there is no gate it says 1
        found = replaced(Openness(), self.wiring, self.sites, self.split(numbers))
        return [
            {name: entry.long() - 2 for name, entry in kind.items()}
            for kind in (found.units, found.inputs, found.weights, found.blocks)
        ]

    def cost(self, mask: Tensor) -> Cost:
        """What is left when only these gates, (units,), are open; what nobody reads then is gone too."""
        return self.model(live(self.openness(mask.double()), self.wiring))

    @cached_property
    def dense(self) -> Cost:
        """What the whole network costs."""
        return self.model()

    def share(self, name: str, cost: Cost) -> Tensor:
        """What is left of the dense network by "parameters", "macs" or what is in `further`; differentiable as the cost is."""
        if name in self.further:
            return self.further[name].share(cost)
        left: Tensor = getattr(cost, name) / getattr(self.dense, name)
        return left

    def shares(self, mask: Tensor) -> dict[str, float]:
        """All shares when only these gates are open."""
        cost = self.cost(mask)
        return {name: float(self.share(name, cost)) for name in ("parameters", "macs", *self.further)}

    @torch.no_grad()
    def set(self, mask: Tensor) -> None:
        """Show this mask, (units,)."""
        for gate, part in zip(self.gates, self.split(mask), strict=True):
            gate.mask.copy_(part)

    def probing(self, on: bool) -> None:
        """Let the gates note gradients, or no longer."""
        for _, layer in gated_layers(self.net):
            for _, _, held in layer.held():
                held.train(on)
        for gate in self.gates:
            gate.take(1)

    @property
    def uncut(self) -> dict[str, str]:
        """Layers that no gate reaches (none of their units has one, and they are in no branch that has), and why."""
        gated = {name for site in self.sites for name in site.layers}
        closing = {site.layer for site in self.sites if site.kind == "blocks"}
        gated |= {name for branch in self.wiring.branches if branch.name in closing for name in branch.members}
        modules, why = dict(self.net.named_modules(remove_duplicate=False)), dict[str, str]()
        for group in self.wiring.groups:
            made = site_of(group, self.wiring, modules)
            reason = made.reason if isinstance(made, Refusal) else "`at` leaves them out"
            for name in group.layers:
                why.setdefault(name, reason)
        return {layer.name: why.get(layer.name, "") for layer in self.wiring.layers if layer.name not in gated}

    def entries(self, number: int) -> dict[str, Tensor]:
        """Layers of this site: for each of their units the gate in the site that closes it, -1 for none."""
        site, size = self.sites[number], self.gates[number].mask.numel()
        if site.kind == "blocks":
            layers = (layer for layer in self.wiring.layers if layer.name in site.layers)
            return {layer.name: torch.zeros(layer.outputs, dtype=torch.long) for layer in layers}
        numbered = replaced(Openness(), self.wiring, [site], [torch.arange(size, dtype=torch.double) + 2])
        return {name: numbered.units[name].long() - 2 for name in site.layers}  # where there is no gate it says 1
