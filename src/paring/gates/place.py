"""Where gates go: from places such as `"units"` or `"inputs:Linear"` (`paring.core.places`) to layers of a network.

Unit gates go after the unit's last affine operation: on the scale and shift of a BatchNorm, InstanceNorm or GroupNorm when
that is the only reader of the layer, else on the layer itself. A gate in front of a norm would get no gradient (the norm
undoes its scale) and its zero would come out as the norm's shift. Units that residual adds, products or depthwise convolutions tie
together have one gate, which acts in several modules (`paring.analysis.unit_groups` says which), or in the
columns of all layers that read them, where a number other than zero would be left in front of these; a selector takes such a
group when it takes any of its layers, and `!` leaves out every group with that layer. An attention head is a unit of
such a group, with one gate on its values; `heads` stands for these groups alone. `blocks` are residual branches, each with one
gate on the result of its last layers (`paring.analysis.branches`). `stream` stands for the residual streams that LayerNorms or
RMSNorms read, which `units` leaves alone (`paring.gates.stream`). Units that the network's output
shows, or that something else holds on to, are left alone; asking for such a layer by its very name is an error that
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import prod

import torch
from torch import nn

from paring.analysis import Group, Wiring
from paring.analysis.branches import Branch
from paring.analysis.wiring import Packed
from paring.core import (
    At,
    Gate,
    Place,
    PlaceKind,
    Places,
    Refusal,
    gate_shape,
    kinds,
    names_layer,
    put,
    share,
)
from paring.core.fused_encoder import unfuse
from paring.core.gated_parameters import share_slices
from paring.core.places import PlacedKind
from paring.cost import CostModel, Openness
from paring.gates.coupled import Mount, choose_mounts, covers_layer, group_size
from paring.gates.stream import stream_mounts
from paring.gates.why_not_gateable import carrier_of, of_carrier, of_hook, of_instance, of_layer

_SHOWN = 12  # names of layers in a message
_NOTHING = {
    "heads": "no attention head",
    "blocks": "no residual branch",
    "stream": "no residual stream that LayerNorms or RMSNorms read",
}


@dataclass(frozen=True)
class Site:
    """One gate to be put in.

    Attributes:
        layer: name of the layer whose units, inputs or weights are gated; of a group the first one.
        module: name of the module that carries the gate (the layer, or the norm behind it); of a group the first one.
        kind: the place.
        shape: shape of the gate.
        size: parameters that one gate switches off (the |g| of group L0).
        macs: multiply-accumulates per example that one gate switches off, everything else being open.
        mounts: where a gate of several modules acts; empty for a gate that sits in `module` alone.
        group: all layers of the group; empty when there is only `layer`.
        leaf: of a gate at "weights", the parameter of the module that it changes; see `Kind.packed`.
    """

    layer: str
    module: str
    kind: PlaceKind
    shape: tuple[int, ...]
    size: int
    macs: int
    mounts: tuple[Mount, ...] = ()
    group: tuple[str, ...] = ()
    leaf: str = "weight"

    @property
    def parameter(self) -> str:
        """The name of the parameter behind a gate at "weights"."""
        return f"{self.module}.{self.leaf}" if self.module else self.leaf

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers whose units, inputs or weights are gated."""
        return self.group or (self.layer,)


def sites(net: nn.Module, wiring: Wiring, places: At) -> tuple[Site, ...]:
    """The gates that `places` mean in this network.

    Raises:
        ValueError: a place is unknown, selects nothing, names a layer that is not there or cannot be gated (with the
            reason), or two places ask for the same gate.
    """
    found: dict[tuple[str, PlaceKind, tuple[Mount, ...]], Site] = {}
    modules = dict(net.named_modules(remove_duplicate=False))
    for place in Places.of(places).places:
        _check_names(place, net, wiring, modules)
        fresh: list[Site] = []
        refused: dict[str, Refusal] = {}
        for names, make in _candidates(place.kind, wiring, modules):
            if place.selects_group({name: carrying(name, net, wiring, modules) for name in names}):
                made = make()
                if isinstance(made, Site):
                    fresh.append(made)
                else:
                    refused |= dict.fromkeys(names, made)
        gated = {name for site in fresh for name in site.layers}
        for name, reason in refused.items():
            if place.names(name) and name not in gated:
                raise ValueError(f"place '{place}': layer '{name}' cannot be gated: {reason}")
        if not fresh:
            why = "; ".join(f"{name or '(net)'}: {reason}" for name, reason in refused.items())
            nothing = _NOTHING.get(place.kind, "no Linear, Conv or Embedding layer")
            why = why or f"{nothing} is selected"
            raise ValueError(f"no place for gates at '{place}' in this {type(net).__name__}: {why}")
        for site in fresh:
            if (site.layer, site.kind, site.mounts) in found:
                raise ValueError(
                    f"two places ask for a gate at '{site.kind}' of layer '{site.layer}'; exclude it from one with '!{site.layer}'"
                )
            found[site.layer, site.kind, site.mounts] = site
    chosen = tuple(found.values())
    read = {mount.module: site.layer for site in chosen for mount in site.mounts if mount.place == "inputs"}
    if twice := next((site.layer for site in chosen if site.kind == "inputs" and site.layer in read), None):
        raise ValueError(
            f"two places ask for a gate at 'inputs' of layer '{twice}': the units of '{read[twice]}' can be gated only there; exclude "
            f"one with '!{twice}' or '!{read[twice]}'"
        )
    return chosen


def _check_names(place: Place, net: nn.Module, wiring: Wiring, modules: dict[str, nn.Module]) -> None:
    """Refuse a selector that speaks of layers that this network does not have: most likely a typing error.

    Types of layers that torch has are allowed even if this network has none of them.
    """
    layers = {name: module for name, module in modules.items() if module._parameters}
    layers |= {
        name: carrying(name, net, wiring, modules) for name in [*(x.name for x in wiring.layers), *wiring.packed]
    }
    if place.kind == "blocks":
        layers |= {branch.module: modules[branch.module] for branch in wiring.branches}
    for part in (part.removeprefix("!") for part in place.parts):
        if any(names_layer(part, name, module) for name, module in layers.items()) or _is_type(part):
            continue
        within = [name for name in layers if name.startswith(f"{part}.")]
        close = [f"{part}.*"] if within else get_close_matches(part, layers, 1)
        meant = f" (did you mean '{close[0]}'?)" if close else ""
        if "," in part:
            meant = f" (several are joined by '|': '{place.kind}:{place.selector.replace(' ', '').replace(',', '|')}')"
        names = [name or "(the network itself)" for name in layers]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(
            f"place '{place}': this {type(net).__name__} has no layer '{part}'{meant}; it has {', '.join(names[:_SHOWN])}{more}"
        )


def _is_type(name: str) -> bool:
    return isinstance(getattr(nn, name, None), type) or any(name == kind.layer.__name__ for kind in kinds())


def put_gate(modules: Mapping[str, nn.Module], site: Site, gate: Gate) -> None:
    """Hang the gate on the site's module, or on all modules where it acts."""
    if not site.mounts:
        put(modules[site.module], site.kind, gate, site.leaf)
    for mount in site.mounts:
        index = torch.tensor(mount.index)
        if mount.leaf:
            share_slices(modules[mount.module], mount.leaf, gate, index, mount.dim)
        else:
            share(modules[mount.module], gate, index, mount.place)
    for name in {site.module, *(mount.module for mount in site.mounts)}:
        unfuse(modules, name)


Candidate = tuple[tuple[str, ...], Callable[[], Site | Refusal]]


def _candidates(kind: PlacedKind, wiring: Wiring, modules: dict[str, nn.Module]) -> Iterator[Candidate]:
    """What could be gated, as (layers, function that gives the site or the reason why there is none)."""
    if kind in ("inputs", "weights"):
        packed = wiring.packed if kind == "weights" else {}
        inside = {part.layer for one in packed.values() for part in one.parts}
        for layer in wiring.layers:
            if layer.name not in inside:
                yield (layer.name,), partial(single_site, kind, layer.name, wiring, modules)
        for name, one in packed.items():
            yield (one.module, name), partial(packed_site, one, wiring, modules)
        return
    if kind == "blocks":
        for branch in wiring.branches:
            names = dict.fromkeys((branch.name, *branch.carriers, branch.module))
            yield tuple(names), partial(branch_site, branch, wiring, modules)
        return
    for group in wiring.groups:
        if kind == "stream" and group.stream is not None:
            yield group.layers, partial(_in_stream, group, wiring, modules)
        elif kind == "units" or (kind == "heads" and group.heads):
            yield group.layers, partial(site_of, group, wiring, modules)


def _in_stream(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | Refusal:
    """One gate for a residual stream, or the reason why there can be none."""
    mounts = stream_mounts(group, wiring, modules)
    return mounts if isinstance(mounts, Refusal) else _mounted(group, wiring, mounts)


def site_of(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | Refusal:
    """The gate of a group: on its one layer or the norm behind it where that will do, else wherever it has to act."""
    hidden = wiring.layer(group.layers[0]).kind == "recurrent"
    if not covers_layer(group, wiring) or group.at_readers or hidden:
        return _coupled(group, wiring, modules)
    made = single_site("units", group.layers[0], wiring, modules)
    if isinstance(made, Refusal) and isinstance(other := _coupled(group, wiring, modules), Site):
        return other
    return made


def _coupled(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | Refusal:
    """One gate for a group of units that act in several modules, or the reason why there can be none."""
    if group.reason:
        return Refusal(group.reason)
    mounts = choose_mounts(group, wiring, modules)
    if isinstance(mounts, Refusal):
        return mounts
    return _mounted(group, wiring, mounts) if mounts else Refusal("no layer of it can carry a gate")


def _mounted(group: Group, wiring: Wiring, mounts: tuple[Mount, ...]) -> Site:
    size, macs = group_size(group, wiring)
    first = group.layers[0]
    return Site(first, mounts[0].module, "units", (group.size,), size, macs, mounts, group.layers)


def single_site(kind: PlaceKind, name: str, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | Refusal:
    """The gate of one layer, or the reason why there can be none."""
    layer, module = wiring.layer(name), modules.get(name)
    reason = of_carrier(name, module) or of_layer(name, wiring, modules)
    if not reason and kind == "inputs" and layer.lookup:
        reason = Refusal("an embedding has no input features")
    if not reason and kind == "units":
        carried = layer.norm or name
        reason = Refusal(layer.reason) if layer.reason else of_carrier(carried, modules.get(carried))
    if reason is not None:
        return reason
    weights, carrier = prod(layer.weight), name
    if kind == "units":
        size = weights // layer.outputs + int(layer.bias) + layer.per_unit
        macs = layer.positions * (weights // layer.outputs)
        if layer.norm is not None:
            carrier = layer.norm
        beside = sum(n.parameters * int(torch.isin(n.labels, layer.labels).sum()) for n in wiring.norms)
        size += beside // layer.outputs
    elif kind == "inputs":
        size = weights // layer.inputs
        macs = layer.positions * size
    else:
        size, macs = 1, layer.positions
    macs = int(macs * layer.multiplies)
    try:
        shape = gate_shape(modules[carrier], kind)
    except TypeError as error:
        return Refusal(str(error))
    return Site(name, carrier, kind, shape, size, macs)


def branch_site(branch: Branch, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | Refusal:
    """The gate of a residual branch, or the reason why there can be none."""
    if branch.reason:
        return Refusal(branch.reason)
    names = {}
    for carrier in branch.carriers:
        path = carrier.removesuffix("out_proj").removesuffix(".")
        inside = carrier.endswith("out_proj") and isinstance(modules.get(path), nn.MultiheadAttention)
        names[path if inside else carrier] = carrier
    for name, carrier in names.items():
        layers = [layer for layer in wiring.layers if layer.name == carrier]
        reason = next((r for layer in layers if (r := of_layer(layer.name, wiring, modules))), None)
        if reason is None and name == carrier:
            reason = of_carrier(name, modules.get(name))
        if reason is not None:
            return reason
        try:
            gate_shape(modules[name], "blocks")
        except TypeError as error:
            return Refusal(str(error))
    model = CostModel(wiring)
    dense, left = model(), model(Openness(blocks={branch.name: torch.zeros(1)}))
    size, macs = int(dense.parameters - left.parameters), int(dense.macs - left.macs)
    mounts = tuple(Mount(name, (0,), "blocks") for name in names) if len(names) > 1 else ()
    return Site(branch.name, next(iter(names)), "blocks", (1,), size, macs, mounts, branch.carriers)


def packed_site(packed: Packed, wiring: Wiring, modules: Mapping[str, nn.Module]) -> Site | Refusal:
    """The gate of a weight that its layer packs with others, or the reason why there can be none."""
    module = modules[packed.module]
    path, _, leaf = packed.leaf.rpartition(".")
    owner = module.get_submodule(path)
    if leaf not in owner._parameters:
        return of_hook(packed.name, owner)
    if (reason := of_instance(packed.module, module)) is not None:
        return reason
    for name, other in modules.items():
        held = (one for key, one in other._parameters.items() if (other, key) != (owner, leaf))
        if any(one is owner._parameters[leaf] for one in held):
            return Refusal(f"its weight is shared with '{name}'")
    macs = sum(wiring.layer(part.layer).positions * part.rows for part in packed.parts) // packed.shape[0]
    try:
        shape = gate_shape(module, "weights", packed.leaf)
    except TypeError as error:
        return Refusal(str(error))
    return Site(packed.name, packed.module, "weights", shape, 1, macs, leaf=packed.leaf)


def carrying(name: str, net: nn.Module, wiring: Wiring, modules: dict[str, nn.Module]) -> nn.Module:
    """The module that a selector means by the name of a layer; the network where nothing else has it."""
    if name in modules:
        return modules[name]
    if name in wiring.packed:
        return modules[wiring.packed[name].module]
    return modules.get(carrier_of(name, modules), net)
