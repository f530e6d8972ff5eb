"""Where gates go: from a description such as `"units"` or `"inputs:Linear"` to concrete layers of a network.

A place is `KIND` or `KIND:SELECTOR`. KIND is `units`, `inputs`, `weights` or `heads`. SELECTOR is a layer type (`Conv2d`), a
module name, or a pattern over names (`features.*`), several of them joined by `|`; a leading `!` excludes.

Unit gates go after the unit's last affine operation: on the BatchNorm's output when a BatchNorm is the only reader of
the layer, else on the layer itself. A gate in front of a BatchNorm would get no gradient (the norm undoes its scale)
and its zero would come out as the norm's shift. Units that residual adds, products or depthwise convolutions tie
together have one gate, which acts in several modules (`paring.graph.groups` says which); a selector takes such a
group when it takes any of its layers, and `!` leaves out every group with that layer. An attention head is a unit of
such a group, with one gate on its values; `heads` stands for these groups alone. Units that the network's output
shows, or that something else holds on to, are left alone; asking for such a layer by its very name is an error that
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Literal

import torch
from torch import nn

from paring.core import KINDS, STOCK, Gate, Kind, gate_shape, put, share
from paring.gates.coupled import Tap, choose_taps, covers_layer, group_size
from paring.gates.obstacle import carrier_of, of_carrier, of_layer
from paring.graph import Group, Wiring

_KINDS = (*KINDS, "heads")


@dataclass(frozen=True)
class Place:
    """A parsed place.

    Attributes:
        kind: "units", "inputs", "weights" or "heads".
        selector: "" for every layer that can take it, else see the module's docstring.
    """

    kind: Kind | Literal["heads"]
    selector: str = ""

    @classmethod
    def parse(cls, text: str | Place) -> Place:
        """Read `KIND` or `KIND:SELECTOR`.

        Raises:
            ValueError: the kind is unknown.
        """
        if isinstance(text, Place):
            return text
        if not isinstance(text, str):
            raise ValueError(f"place {text!r}: write a place as text, for example 'units' or 'inputs:Linear'")
        kind, _, selector = text.partition(":")
        if kind not in _KINDS:
            raise ValueError(
                f"place {text!r}: {kind!r} is none of {', '.join(_KINDS)}; write for example 'units' or 'inputs:Linear'"
            )
        return cls(kind, selector)  # type: ignore[arg-type]  # one of these words

    def selects(self, name: str, module: nn.Module) -> bool:
        """Whether the selector takes this layer."""
        return self.selects_group({name: module})

    def selects_group(self, layers: Mapping[str, nn.Module]) -> bool:
        """Whether the selector takes layers that go together: any of them, and excludes none."""
        wanted = [part for part in self.selector.split("|") if part]
        keep = [part for part in wanted if not part.startswith("!")]
        drop = [part[1:] for part in wanted if part.startswith("!")]
        stock = {name: STOCK.get(type(module), type(module)).__name__ for name, module in layers.items()}

        def hit(part: str) -> bool:
            return any(part in (kind, name) or fnmatchcase(name, part) for name, kind in stock.items())

        return (not keep or any(map(hit, keep))) and not any(map(hit, drop))

    def names(self, name: str) -> bool:
        """Whether the selector asks for this layer by its exact name."""
        return bool(self.selector) and name in self.selector.split("|")


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
        taps: where a gate of several modules acts; empty for a gate that sits in `module` alone.
        group: all layers of the group; empty when there is only `layer`.
    """

    layer: str
    module: str
    kind: Kind
    shape: tuple[int, ...]
    size: int
    macs: int
    taps: tuple[Tap, ...] = ()
    group: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers whose units, inputs or weights are gated."""
        return self.group or (self.layer,)


def sites(net: nn.Module, wiring: Wiring, places: Sequence[str | Place]) -> tuple[Site, ...]:
    """The gates that `places` mean in this network.

    Raises:
        ValueError: a place is unknown, selects nothing, names a layer that cannot be gated (with the reason), or two
            places ask for the same gate.
    """
    found: dict[tuple[str, Kind, tuple[Tap, ...]], Site] = {}
    modules = dict(net.named_modules(remove_duplicate=False))
    for place in map(Place.parse, places):
        fresh: list[Site] = []
        refused: dict[str, str] = {}
        for names, make in _candidates(place.kind, wiring, modules):
            if place.selects_group({name: modules.get(carrier_of(name, modules), net) for name in names}):
                made = make()
                if isinstance(made, Site):
                    fresh.append(made)
                else:
                    refused |= dict.fromkeys(names, made)
        text = f"{place.kind}:{place.selector}" if place.selector else place.kind
        gated = {name for site in fresh for name in site.layers}
        for name, reason in refused.items():
            if place.names(name) and name not in gated:
                raise ValueError(f"place '{text}': layer '{name}' cannot be gated: {reason}")
        if not fresh:
            why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            nothing = "no attention head" if place.kind == "heads" else "no Linear, Conv or Embedding layer"
            why = why or f"{nothing} is selected"
            raise ValueError(f"no place for gates at '{text}' in this {type(net).__name__}: {why}")
        for site in fresh:
            if (site.layer, site.kind, site.taps) in found:
                raise ValueError(
                    f"two places ask for a gate at '{site.kind}' of layer '{site.layer}'; exclude it from one with '!{site.layer}'"
                )
            found[site.layer, site.kind, site.taps] = site
    return tuple(found.values())


def put_gate(modules: Mapping[str, nn.Module], site: Site, gate: Gate) -> None:
    """Hang the gate on the site's module, or on all modules where it acts."""
    if not site.taps:
        put(modules[site.module], site.kind, gate)
    for tap in site.taps:
        share(modules[tap.module], gate, torch.tensor(tap.index))


Candidate = tuple[tuple[str, ...], Callable[[], Site | str]]


def _candidates(kind: Kind | Literal["heads"], wiring: Wiring, modules: dict[str, nn.Module]) -> Iterator[Candidate]:
    """What could be gated, as (layers, function that gives the site or the reason why there is none)."""
    if kind in ("inputs", "weights"):
        for layer in wiring.layers:
            yield (layer.name,), partial(_single, kind, layer.name, wiring, modules)
        return
    for group in wiring.groups if kind == "units" else (group for group in wiring.groups if group.heads):
        if covers_layer(group, wiring):
            yield group.layers, partial(_single, "units", group.layers[0], wiring, modules)
        else:
            yield group.layers, partial(_coupled, group, wiring, modules)


def group_obstacle(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> str:
    """Why `at="units"` leaves this group alone; empty when it gates it."""
    alone = covers_layer(group, wiring)
    made = _single("units", group.layers[0], wiring, modules) if alone else _coupled(group, wiring, modules)
    return made if isinstance(made, str) else ""


def _coupled(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | str:
    """One gate for a group of units that act in several modules, or the reason why there can be none."""
    reason = group.reason or next((r for name in group.layers if (r := of_layer(name, wiring, modules))), "")
    if reason:
        return reason
    taps = choose_taps(group, wiring, modules)
    if isinstance(taps, str):
        return taps
    size, macs = group_size(group, wiring)
    first = group.layers[0]
    return Site(first, taps[0].module, "units", (group.size,), size, macs, taps, group.layers)


def _single(kind: Kind, name: str, wiring: Wiring, modules: dict[str, nn.Module]) -> Site | str:
    """The gate of one layer, or the reason why there can be none."""
    layer, module = wiring.layer(name), modules.get(name)
    reason = of_carrier(name, module) or of_layer(name, wiring, modules)
    if not reason and kind == "inputs" and layer.kind == "embedding":
        reason = "an embedding has no input features"
    if not reason and kind == "units":
        reason = layer.reason or of_carrier(layer.norm or name, modules.get(layer.norm or name))
    if reason:
        return reason
    weights, carrier = prod(layer.weight), name
    if kind == "units":
        size = weights // layer.outputs + int(layer.bias)
        macs = layer.positions * (weights // layer.outputs)
        if layer.norm is not None:
            carrier, size = layer.norm, size + 2
    elif kind == "inputs":
        size = weights // layer.inputs
        macs = layer.positions * size
    else:
        size, macs = 1, layer.positions
    if layer.kind == "embedding":  # a look-up
        macs = 0
    try:
        shape = gate_shape(modules[carrier], kind)
    except TypeError as error:
        return str(error)
    return Site(name, carrier, kind, shape, size, macs)
