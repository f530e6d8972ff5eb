"""Who reads whom: the layers of a network with the id of every unit and the unit behind every input column.

Found from the captured graph (`interpret`), not from module names, so flattened channels, concatenations and residual
adds need no special care by whoever reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch
from torch import Tensor, nn

from paring.analysis.alone import alone
from paring.analysis.branches import Branch, find_branches, parameters_beside
from paring.analysis.capture import capture
from paring.analysis.interpret import Interpretation, interpret
from paring.analysis.liveness import dead_units
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import COMPUTED, Alias, Site, module_path
from paring.analysis.unit_groups import SPREAD, Group, find_groups, find_heads, sole_norm, spread_out
from paring.analysis.weights import groups_of, known
from paring.analysis.work import Product
from paring.core import Example, kind_of, packed_name, unwrapped
from paring.core.fresh import fresh


@dataclass(frozen=True)
class Layer:
    """One Linear, convolution or embedding of the network, or one layer and direction of a recurrent one.

    weight: shape of the weight tensor; of a recurrent layer (units, columns, gates), columns of its inputs and of its state; of a
    stack of matrices, one for each expert, (units, columns, stack).
    bias: entries of it for each unit. inputs: in_features, or in_channels of all groups together (0 for an embedding).
    positions: per example, where the weights are applied (1, H·W, T, ...; of the input in a transposed convolution), summed
    over repeated calls; written: where results are (0: there too). labels (outputs,): id of each
    unit; units that residual adds tie together share one id. sources (inputs,): id of the unit that each input column
    reads, -1 = network input or unknown. norm: path of the BatchNorm, InstanceNorm or GroupNorm that alone reads the output. gateable: may its
    units be gated or removed independently; reason: why not, for the user's eyes. foreign: why a gate in the module
    would not act on all uses of its parameters ("" when it would). per_unit: further parameters of each unit.
    tied: its weight is that of an embedding, and counted there. stored: where its weight is, if no layer of torch holds it.
    """

    name: str
    kind: str
    weight: tuple[int, ...]
    bias: int
    outputs: int
    inputs: int
    groups: int
    positions: int
    labels: Tensor
    sources: Tensor
    norm: str | None
    gateable: bool
    reason: str
    foreign: str = ""
    written: int = 0
    per_unit: int = 0
    tied: bool = False
    stored: Stored | None = None
    stack: int = 1

    @property
    def lookup(self) -> bool:
        """Whether it reads rows of a table, and no input columns."""
        return self.kind == "embedding"

    @property
    def multiplies(self) -> float:
        """Multiply-accumulates for each weight and position: a look-up has none, and of a stack one matrix is used."""
        return int(not self.lookup) if self.stack == 1 else 1 / self.stack

    @property
    def biased(self) -> int:
        """Positions per example at which the bias is added."""
        return self.written or self.positions


@dataclass(frozen=True)
class Stored:
    """The parameter of a module of the user's own that is the weight of a layer.

    module, leaf: where it is. unit_dim, column_dim: dimensions that units and input columns lie along. inside: only the
    forward of that module reads it.
    """

    module: str
    leaf: str
    unit_dim: int
    column_dim: int
    inside: bool


@dataclass(frozen=True)
class Norm:
    """One norm: labels (C,) are the ids of the units it normalises; affine: has a scale and a shift.

    Or a parameter outside of layers with `each` entries for each of these units, `kind` "parameter".
    """

    name: str
    kind: str
    labels: Tensor
    affine: bool
    each: int = 2

    @property
    def parameters(self) -> int:
        """Of one unit."""
        return self.each * self.affine


@dataclass(frozen=True)
class Part:
    """Rows of a packed weight that are the weight of a layer, or a part of it.

    layer: its name. start, rows: where they are; a multiple of the layer's units, each unit having one row in every stretch.
    first: the column of the layer that the weight's first column is.
    """

    layer: str
    start: int
    rows: int
    first: int = 0


@dataclass(frozen=True)
class Packed:
    """One of the weights that a layer packs together (`Kind.packed`), which takes gates at "weights".

    name: as in `packed_name`. module, leaf: where it is. parts: empty where no layer of the wiring computes with it.
    """

    name: str
    module: str
    leaf: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()

    @property
    def parameter(self) -> str:
        """The name of the parameter in the network."""
        return f"{self.module}.{self.leaf}" if self.module else self.leaf


@dataclass(frozen=True)
class Wiring:
    """Layers and norms in order of execution. units: ids lie in 0..units-1.

    groups: the ids by the layers they live in. fixed (units,): which ids have to stay whatever their gates say; None
    in a wiring made by hand, where the units of layers that are not gateable are. products: arithmetic outside of the
    layers, such as attention and recurrent networks. uncounted: modules with arithmetic that is not known -> its name.
    packed: weights that layers pack together, by name. branches: of residual additions. beside: parameters in branches that
    no other row counts -> their entries. mixed (units,): which ids norms over them read, so that they stay unless they are zero.
    dead (units,): which ids are zero or unread already; None where that was not looked for.
    """

    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    units: int
    groups: tuple[Group, ...] = ()
    fixed: Tensor | None = None
    products: tuple[Product, ...] = ()
    uncounted: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, Packed] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    beside: Mapping[str, int] = field(default_factory=dict)
    mixed: Tensor | None = None
    dead: Tensor | None = None

    @property
    def parts(self) -> tuple[Layer | Norm, ...]:
        """Layers and norms."""
        return (*self.layers, *(norm for norm in self.norms if norm.kind != "parameter"))

    def layer(self, name: str) -> Layer:
        """The layer with this module path. Raises `KeyError` with the names there are."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} in the wiring; there are {', '.join(repr(x.name) for x in self.layers)}")

    def readers(self, name: str) -> tuple[Layer, ...]:
        """The layers that read some unit of this layer directly (through activations, norms and moves)."""
        labels = self.layer(name).labels
        return tuple(layer for layer in self.layers if bool(torch.isin(layer.sources, labels).any()))


@alone()
def wiring(net: nn.Module, example: Example, *, dead: bool = False) -> Wiring:
    """The wiring of `net` on `example` (a tensor, a tuple of arguments or a mapping of keyword arguments; batch first). `net` is left as it was.

    dead: look for units that are zero or unread already.

    Raises `CaptureError` (a `ValueError`) when the network cannot be traced.
    """
    net = fresh(unwrapped(net))
    captured = capture(net, example)
    found = interpret(net, captured, training=net.training, recurrent=True)
    if found.held_back:
        free = interpret(net, captured, training=net.training, free=True, recurrent=True)
        if free.slice_ties or _loose(free) > _loose(found):  # the units of attention lie along heads
            found = free
    packed, branches = _packed(net, found), find_branches(net, found, captured)
    loose = {one.parameter for one in packed.values() if not one.parts}
    inside = {name for branch in branches for name in branch.members}
    beside = {name: n for name, n in parameters_beside(net, found).items() if name in inside - loose}
    gone = dead_units(found) if dead else None
    return replace(describe(found), packed=packed, branches=branches, beside=beside, dead=gone)


def _packed(net: nn.Module, analysis: Interpretation) -> dict[str, Packed]:
    """The packed weights of a network, each with the layers that it is the weight of."""
    parts: dict[str, dict[Part, None]] = {}
    for site in analysis.sites:
        alias = analysis.aliases.get(f"{site.name}.weight" if site.name else "weight")
        if isinstance(site.module, Recurrence):
            own = site.module
            for leaf, reads in own.leaves.items():
                first = own.split if reads == 2 else 0
                part = Part(site.name, 0, len(site.units) * own.gates, first)
                parts.setdefault(f"{own.path}.{leaf}" if own.path else leaf, {})[part] = None
        elif alias is not None and not alias.swapped:
            parts.setdefault(alias.name, {})[Part(site.name, alias.start, len(site.units))] = None
        else:
            name = f"{site.name}.weight" if site.name else "weight"
            parts.setdefault(name, {})[Part(site.name, 0, len(site.units))] = None
    found = {}
    for path, module in net.named_modules():
        kind = kind_of(module)
        for leaf in () if kind is None else kind.packed(module):
            name, held = packed_name(path, leaf), attrgetter(leaf)(module)
            known = tuple(parts.get(f"{path}.{leaf}" if path else leaf, {}))
            found[name] = Packed(name, path, leaf, tuple(held.shape), known)
    return found


def _computed(analysis: Interpretation, box: Tensor) -> Tensor | None:
    """One id that a layer computes for each slice (n, m): of heads one of theirs; None where that is not known."""
    computed = {unit: unit for site in analysis.sites for unit in site.units.tolist()}
    if box.shape[1] == 1 and all(unit in computed for unit in box[:, 0].tolist()):
        return box[:, 0]
    heads = find_heads(analysis)
    one_of = {heads[unit]: unit for unit in computed if unit in heads}
    found = [one_of.get(heads.get(unit, (-1, -1)), -1) for unit in box[:, 0].tolist()]
    return None if -1 in found else torch.tensor(found)


def _loose(analysis: Interpretation) -> int:
    """Rows of layers whose units may go, each by itself."""
    stays = {*analysis.kept, *analysis.mixed, *spread_out(analysis)}
    return sum(unit not in stays for site in analysis.sites for unit in site.units.tolist())


def describe(analysis: Interpretation) -> Wiring:
    """The wiring of an interpretation."""
    calls: dict[str, list[Site]] = {}
    for site in analysis.sites:
        calls.setdefault(site.name, []).append(site)
    members = Counter(found_id for sites in calls.values() for found_id in sites[0].units.tolist())
    heads = frozenset(find_heads(analysis))
    spread = spread_out(analysis) - heads
    layers = tuple(_layer(analysis, sites, members, heads, spread) for sites in calls.values())
    norms: dict[str, Norm] = {
        n.name: Norm(n.name, type(n.module).__name__, n.labels, bool(n.module.affine)) for n in analysis.norms
    }
    for one in analysis.loose:
        if one.each and (labels := _computed(analysis, one.box)) is not None:
            norms[one.name] = Norm(one.name, "parameter", labels, True, one.each)
    fixed = torch.zeros(analysis.units, dtype=torch.bool)
    fixed[torch.tensor(list(analysis.kept), dtype=torch.int64)] = True
    mixed = torch.zeros_like(fixed)
    for norm in analysis.features:
        mixed[norm.labels[norm.labels >= 0]] = True
        if not norm.loose:
            each = 1 + (getattr(norm.module, "bias", None) is not None)
            norms[norm.name] = Norm(norm.name, type(norm.module).__name__, norm.labels, True, each)
    groups = find_groups(analysis)
    return Wiring(
        layers,
        tuple(norms.values()),
        analysis.units,
        groups,
        fixed,
        tuple(analysis.products),
        analysis.uncounted,
        mixed=mixed & ~fixed,
    )


def _layer(
    analysis: Interpretation,
    sites: list[Site],
    members: Counter[int],
    heads: frozenset[int],
    spread: frozenset[int],
) -> Layer:
    site = sites[0]
    weight, further = site.module.weight, (getattr(site.module, leaf, None) for leaf in known(site.module).own)
    assert isinstance(weight, Tensor)
    recurrence = site.module if isinstance(site.module, Recurrence) else None
    biases = 0 if recurrence is None else sum(reads == 0 for reads in recurrence.leaves.values()) * recurrence.gates
    stays = analysis.mixed | analysis.kept
    alias = analysis.aliases.get(f"{site.name}.weight" if site.name else "weight")
    shape, stack = tuple(weight.shape), 1 if alias is None else alias.stack or 1
    if recurrence is not None:
        shape = (*shape, recurrence.gates)
    elif stack > 1:
        shape = (*shape, stack)
    reasons = [stays[u] for u in site.units.tolist() if u in stays]
    reasons += [analysis.coupled.get(u, "coupled") for u in site.units.tolist() if members[u] > 1]
    reasons += ["attention heads" for u in site.units.tolist() if u in heads]
    reasons += [SPREAD for u in site.units.tolist() if u in spread]
    return Layer(
        name=site.name,
        kind=site.kind,
        weight=shape,
        bias=biases if recurrence is not None else int(getattr(site.module, "bias", None) is not None),
        outputs=len(site.units),
        inputs=len(site.columns),
        groups=groups_of(site.module),
        positions=sum(s.positions for s in sites),
        labels=site.units,
        sources=site.columns,
        norm=sole_norm(analysis, site) if len(sites) == 1 else None,
        gateable=not reasons,
        reason=reasons[0] if reasons else "",
        foreign=site.foreign or ("" if site.plain else COMPUTED),
        written=sum(s.written or s.positions for s in sites),
        per_unit=sum(one.numel() for one in further if isinstance(one, nn.Parameter)) // len(site.units),
        tied=site.tied,
        stored=None if alias is None or alias.rows else _stored(alias, sites),
        stack=stack,
    )


def _stored(alias: Alias, sites: list[Site]) -> Stored:
    """Where the weight of a layer is: a whole parameter of a module that is no layer."""
    path, _, leaf = alias.name.rpartition(".")
    inside = all(f"{module_path(site.node)}.".startswith(f"{path}." if path else "") for site in sites)
    return Stored(path, leaf, alias.dim(0), alias.dim(1), inside)
