"""Where gates go: from a description such as `"units"` or `"inputs:Linear"` to concrete layers of a network.

A place is `KIND` or `KIND:SELECTOR`. KIND is `units`, `inputs` or `weights`. SELECTOR is a layer type (`Conv2d`), a
module name, or a pattern over names (`features.*`), several of them joined by `|`; a leading `!` excludes.

Unit gates go after the unit's last affine operation: on the BatchNorm's output when a BatchNorm is the only reader of
the layer, else on the layer itself. A gate in front of a BatchNorm would get no gradient (the norm undoes its scale)
and its zero would come out as the norm's shift. Units that the network's output shows, or that are tied to others, are
left alone; asking for such a layer by its very name is an error that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from paring.core import GATED, KINDS, STOCK, Kind, gate_shape
from paring.graph import Wiring


@dataclass(frozen=True)
class Place:
    """A parsed place.

    Attributes:
        kind: "units", "inputs" or "weights".
        selector: "" for every layer that can take it, else see the module's docstring.
    """

    kind: Kind
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
        if kind not in KINDS:
            raise ValueError(
                f"place {text!r}: {kind!r} is none of {', '.join(KINDS)}; write for example 'units' or 'inputs:Linear'"
            )
        return cls(kind, selector)

    def selects(self, name: str, module: nn.Module) -> bool:
        """Whether the selector takes this layer."""
        stock = STOCK.get(type(module), type(module)).__name__
        wanted = [part for part in self.selector.split("|") if part]
        keep = [part for part in wanted if not part.startswith("!")]
        drop = [part[1:] for part in wanted if part.startswith("!")]

        def hit(part: str) -> bool:
            return part in (stock, name) or fnmatchcase(name, part)

        return (not keep or any(map(hit, keep))) and not any(map(hit, drop))

    def names(self, name: str) -> bool:
        """Whether the selector asks for this layer by its exact name."""
        return bool(self.selector) and name in self.selector.split("|")


@dataclass(frozen=True)
class Site:
    """One gate to be put in.

    Attributes:
        layer: name of the layer whose units, inputs or weights are gated.
        module: name of the module that carries the gate (the layer, or the norm behind it).
        kind: the place.
        shape: shape of the gate.
        size: parameters that one gate switches off (the |g| of group L0).
        macs: multiply-accumulates per example that one gate switches off, everything else being open.
    """

    layer: str
    module: str
    kind: Kind
    shape: tuple[int, ...]
    size: int
    macs: int


def sites(net: nn.Module, wiring: Wiring, places: Sequence[str | Place]) -> tuple[Site, ...]:
    """The gates that `places` mean in this network.

    Raises:
        ValueError: a place is unknown, selects nothing, names a layer that cannot be gated (with the reason), or two
            places ask for the same gate.
    """
    found: dict[tuple[str, Kind], Site] = {}
    modules = dict(net.named_modules(remove_duplicate=False))
    for place in map(Place.parse, places):
        fresh, refused = [], []
        for layer in wiring.layers:
            module = modules[layer.name]
            if not place.selects(layer.name, module):
                continue
            reason = _obstacle(place.kind, layer.name, wiring, modules)
            if reason:
                if place.names(layer.name):
                    raise ValueError(
                        f"place '{place.kind}:{place.selector}': layer '{layer.name}' cannot be gated: {reason}"
                    )
                refused.append(f"{layer.name}: {reason}")
                continue
            fresh.append(_site(place.kind, layer.name, wiring, modules))
        if not fresh:
            text = f"{place.kind}:{place.selector}" if place.selector else place.kind
            why = "; ".join(refused) if refused else "no Linear, Conv or Embedding layer is selected"
            raise ValueError(f"no place for gates at '{text}' in this {type(net).__name__}: {why}")
        for site in fresh:
            if (site.module, site.kind) in found:
                raise ValueError(
                    f"two places ask for a gate at '{site.kind}' of layer '{site.layer}'; exclude it from one with '!{site.layer}'"
                )
            found[site.module, site.kind] = site
    return tuple(found.values())


def _obstacle(kind: Kind, name: str, wiring: Wiring, modules: dict[str, nn.Module]) -> str:
    """Why layer `name` cannot take a gate of this kind; empty when it can."""
    layer, module = wiring.layer(name), modules[name]
    if type(module) not in GATED and type(module) not in STOCK:
        return f"its class {type(module).__name__} is not a stock layer"
    if layer.foreign:
        return layer.foreign
    shared = [
        other
        for other, m in modules.items()
        if other != name and getattr(m, "weight", None) is getattr(module, "weight", 0)
    ]
    if shared:
        return f"its weight is shared with '{shared[0]}'"
    if any(isinstance(modules[path], nn.TransformerEncoderLayer) for path in _above(name)):
        return "in eval mode torch's fused path of TransformerEncoderLayer uses the weights without calling the layer"
    if kind == "inputs" and layer.kind == "embedding":
        return "an embedding has no input features"
    if kind == "units" and not layer.gateable:
        return layer.reason
    if kind == "units" and layer.norm is not None:
        norm = modules[layer.norm]
        if type(norm) not in GATED and type(norm) not in STOCK:
            return f"its norm '{layer.norm}' is a {type(norm).__name__}, which carries no gates"
        if not getattr(norm, "affine", False):
            return f"its norm '{layer.norm}' has no scale and shift (affine=False) to fold a gate into"
    return ""


def _above(name: str) -> list[str]:
    """Paths of all modules that contain this one."""
    parts = name.split(".")[:-1]
    return ["", *(".".join(parts[: n + 1]) for n in range(len(parts)))]


def _site(kind: Kind, name: str, wiring: Wiring, modules: dict[str, nn.Module]) -> Site:
    layer = wiring.layer(name)
    weights = 1
    for n in layer.weight:
        weights *= n
    module = name
    if kind == "units":
        size = weights // layer.outputs + int(layer.bias)
        macs = layer.positions * (weights // layer.outputs)
        if layer.norm is not None:
            module, size = layer.norm, size + 2
    elif kind == "inputs":
        size = weights // layer.inputs
        macs = layer.positions * size
    else:
        size, macs = 1, layer.positions
    if layer.kind == "embedding":  # a look-up
        macs = 0
    return Site(name, module, kind, gate_shape(modules[module], kind), size, macs)
