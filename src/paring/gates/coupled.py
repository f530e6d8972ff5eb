"""Gates of several modules: where they act, what they cost, and for which ids of the wiring they speak."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from paring.analysis import Group, Wiring
from paring.analysis.wiring import Stored
from paring.core import PlaceKind, Refusal, gateable
from paring.core.gated_parameters import why_not_sliced
from paring.gates.why_not_gateable import carrier_of, of_carrier, of_layer


@dataclass(frozen=True)
class Mount:
    """One module where a shared gate acts.

    index: for each unit of the module its entry in the gate, -1 for none; at "inputs" for each input column. leaf: a parameter or
    buffer of the module, outside of layers, where it acts on slices along `dim`; "" for a layer or norm.
    """

    module: str
    index: tuple[int, ...]
    place: PlaceKind = "units"
    leaf: str = ""
    dim: int = 0

    def first_id(self, wiring: Wiring) -> int:
        """The id of one unit that the gate speaks for."""
        row = next(row for row, entry in enumerate(self.index) if entry >= 0)
        if self.leaf:
            return int(columns_of(self.module, self.leaf, wiring)[row])
        return int(labels_of(self.module, wiring, self.place)[row])


def covers_layer(group: Group, wiring: Wiring) -> bool:
    """Whether the group is all units of one layer, and a gate on the layer, or on the norm behind it, reaches everyone."""
    layer = wiring.layer(group.layers[0])
    alone = len(group.layers) == 1 and not group.heads and torch.equal(layer.labels, group.ids)
    return alone and bool({layer.name, layer.norm} & set(group.fronts))


def choose_mounts(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> tuple[Mount, ...] | Refusal:
    """The modules where one gate for the group acts: its fronts, else its ends, else its readers; or why none will do.

    The readers come first where what a closed gate would leave at them is no zero, and cannot be folded, and where a gate on a
    layer would not govern all that its parameters do.
    """
    first = next((r for name in group.layers if (r := of_layer(name, wiring, modules))), None)
    at_readers = _at_readers(group, wiring, modules)
    if at_readers and (group.at_readers or first):
        return at_readers
    if first is not None:
        return first
    for names in (group.fronts, group.ends):
        carriers = {name: carrier_of(name, modules) for name in names}
        found = next((r for carrier in carriers.values() if (r := of_carrier(carrier, modules.get(carrier)))), None)
        if found is None:
            shown = dict.fromkeys(name if name in modules else carriers[name] for name in names)
            index = {name: entries(group, name, wiring, gated=True) for name in shown}
            return tuple(Mount(name, tuple(rows.tolist())) for name, rows in index.items() if bool((rows >= 0).any()))
        first = first or found
    assert first is not None
    return at_readers or first


def _at_readers(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> tuple[Mount, ...]:
    """The columns of all layers that read the group; nothing where one of them cannot be gated there."""
    found = []
    for name in group.readers:
        if (stored := wiring.layer(name).stored) is not None:
            if not stored.inside or why_not_sliced(modules.get(stored.module), stored.leaf) is not None:
                return ()
            index = tuple(entries(group, name, wiring, place="inputs").tolist())
            found.append(Mount(stored.module, index, "weights", stored.leaf, stored.column_dim))
            continue
        known = None if name not in modules or of_carrier(name, modules[name]) else gateable(modules[name])
        if known is None or "inputs" not in known.places or of_layer(name, wiring, modules):
            return ()
        found.append(Mount(name, tuple(entries(group, name, wiring, place="inputs").tolist()), "inputs"))
    return tuple(found)


def labels_of(name: str, wiring: Wiring, place: PlaceKind = "units") -> Tensor:
    """Ids of the units of a layer or norm; of those it reads at "inputs".

    Of an attention those of its joint projection (-1 for rows that nothing is known of), of a recurrent layer those of all
    layers and directions, one after the other.
    """
    if place == "inputs":
        return wiring.layer(name).sources
    for part in wiring.parts:
        if part.name == name:
            return part.labels
    held = stretches(name, wiring)
    if not held:
        raise KeyError(f"no layer or norm {name!r} in the wiring")
    labels = torch.full((max(start + len(wiring.layer(layer).labels) for layer, start in held),), -1)
    for layer, start in held:
        labels[start : start + wiring.layer(layer).outputs] = wiring.layer(layer).labels
    return labels


def columns_of(module: str, leaf: str, wiring: Wiring) -> Tensor:
    """Ids that a parameter outside of layers reads as a weight, (columns,); none where it is no weight."""
    stored = (layer for layer in wiring.layers if layer.stored is not None)
    found = (layer.sources for layer in stored if layer.stored is not None and _is(layer.stored, module, leaf))
    return next(found, torch.zeros(0, dtype=torch.int64))


def _is(stored: Stored, module: str, leaf: str) -> bool:
    return (stored.module, stored.leaf) == (module, leaf)


def stretches(name: str, wiring: Wiring) -> list[tuple[str, int]]:
    """The layers that make up the units of an attention, or of a recurrent layer, each with where its own begin."""
    prefix = f"{name}." if name else ""
    for leaves in (("in_proj_weight",), ("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        if all((known := wiring.packed.get(f"{prefix}{leaf}")) is not None and known.parts for leaf in leaves):
            rows = wiring.packed[f"{prefix}{leaves[0]}"].shape[0]
            return [
                (part.layer, number * rows + part.start)
                for number, leaf in enumerate(leaves)
                for part in wiring.packed[f"{prefix}{leaf}"].parts
            ]
    found, start = [], 0
    for layer in wiring.layers:
        if layer.kind == "recurrent" and layer.name.startswith(prefix):
            found.append((layer.name, start))
            start += layer.outputs
    return found


def entries(group: Group, name: str, wiring: Wiring, *, gated: bool = False, place: PlaceKind = "units") -> Tensor:
    """For each unit of a module its gate in the group, -1 where it has none. gated: only where that gate acts itself.

    place: "inputs" for each input column.
    """
    position = torch.full((wiring.units + 1,), -1)
    take = group.gated if gated else torch.ones_like(group.gated)
    position[group.ids[take]] = group.entry[take]
    found = position[labels_of(name, wiring, place)]
    if gated and name in group.rows:
        return found.masked_fill(~group.rows[name], -1)
    for layer, start in stretches(name, wiring) if gated and group.rows else ():
        if layer in group.rows:
            found[start : start + len(group.rows[layer])].masked_fill_(~group.rows[layer], -1)
    return found


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
        macs += int(rows * row * layer.positions * layer.multiplies)
    for product in wiring.products:
        macs += product.macs * int((torch.isin(product.left, group.ids) | torch.isin(product.right, group.ids)).sum())
    for norm in wiring.norms:
        size += norm.parameters * int(torch.isin(norm.labels, group.ids).sum())
    return size // group.size, macs // group.size
