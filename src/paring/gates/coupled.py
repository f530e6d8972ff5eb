"""Gates of several modules: where they act, what they cost, and for which ids of the wiring they speak."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from paring.analysis import Group, Wiring
from paring.core import Refusal
from paring.gates.why_not_gateable import carrier_of, of_carrier


@dataclass(frozen=True)
class Mount:
    """One module where a shared gate acts. index: for each unit of the module its entry in the gate, -1 for none."""

    module: str
    index: tuple[int, ...]


def covers_layer(group: Group, wiring: Wiring) -> bool:
    """Whether the group is all units of one layer, and a gate on the layer, or on the norm behind it, reaches everyone."""
    layer = wiring.layer(group.layers[0])
    alone = len(group.layers) == 1 and not group.heads and torch.equal(layer.labels, group.ids)
    return alone and bool({layer.name, layer.norm} & set(group.fronts))


def choose_mounts(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> tuple[Mount, ...] | Refusal:
    """The modules where one gate for the group acts: its fronts, else its ends; or why neither will do."""
    first: Refusal | None = None
    for names in (group.fronts, group.ends):
        carriers = {name: carrier_of(name, modules) for name in names}
        found = next((r for carrier in carriers.values() if (r := of_carrier(carrier, modules.get(carrier)))), None)
        if found is None:
            index = {name: entries(group, name, wiring, gated=True) for name in names}
            mounts = (
                Mount(carriers[name], tuple(rows.tolist())) for name, rows in index.items() if bool((rows >= 0).any())
            )
            return tuple(mounts)
        first = first or found
    assert first is not None
    return first


def labels_of(name: str, wiring: Wiring) -> Tensor:
    """Ids of the units of a layer or norm, or of the joint projection of an attention."""
    for part in wiring.parts:
        if part.name in (name, f"{name}.in_proj" if name else "in_proj"):
            return part.labels
    raise KeyError(f"no layer or norm {name!r} in the wiring")


def entries(group: Group, name: str, wiring: Wiring, *, gated: bool = False) -> Tensor:
    """For each unit of a module its gate in the group, -1 where it has none. gated: only where that gate acts itself."""
    position = torch.full((wiring.units + 1,), -1)
    take = group.gated if gated else torch.ones_like(group.gated)
    position[group.ids[take]] = group.entry[take]
    found = position[labels_of(name, wiring)]
    return found.masked_fill(~group.rows[name], -1) if gated and name in group.rows else found


def group_of(unit: int, wiring: Wiring) -> Group:
    """The group with this id."""
    return next(group for group in wiring.groups if bool((group.ids == unit).any()))


def group_size(group: Group, wiring: Wiring) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one gate of the group: its rows in all layers and what norms it there.

    Products that take its units, as attention does those of a head, count too.
    """
    size = macs = 0
    for name in group.layers:
        layer = wiring.layer(name)
        rows, row = int(torch.isin(layer.labels, group.ids).sum()), prod(layer.weight) // layer.outputs
        size += rows * (row + int(layer.bias) + layer.per_unit)
        macs += rows * row * layer.positions * layer.multiplies
    for product in wiring.products:
        macs += product.macs * int((torch.isin(product.left, group.ids) | torch.isin(product.right, group.ids)).sum())
    for norm in wiring.norms:
        size += norm.parameters * int(torch.isin(norm.labels, group.ids).sum())
    return size // group.size, macs // group.size
