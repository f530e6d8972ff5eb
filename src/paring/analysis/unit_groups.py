"""Units that go or stay together, and the modules where one gate has to act on all of them.

Units that meet in a sum, a product or a depthwise convolution have one id in the interpretation. A `Group` collects
the ids that live in the same layers: the stream of a residual stage, say, or the hidden units of one layer.

A closed gate must leave zeros (or a constant) in every column that reads the group. The modules that can see to it are
the *fronts*: walking back from each reader, the last Linear, convolution, embedding or BatchNorm on every path. In a
ResNet these are the last norms of the blocks, in a pre-activation ResNet the norms that read the stream (a gate
in front of a norm would get no gradient, and its zero would come out as the norm's shift). Of the factors of a product
one is enough, two would square the gate: the one that something else needs anyway, else the one with the
fewest nonlinearities behind it, never one that turns zero into something else, as a sigmoid does. Where one layer makes both
factors, as its halves, the gate acts on the rows of one half.

A hidden unit of a recurrent layer is one entry with an id for each layer and direction: a gate acts on what its state is made of.

An attention head is one group entry with many ids: its queries, keys and values, and what links them. A gate acts on its
values alone: a head whose values are zero adds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from paring.analysis import ops
from paring.analysis.feature_norms import takes_the_mean
from paring.analysis.grids import Contraction, rectangle
from paring.analysis.interpret import Interpretation
from paring.analysis.labels import representatives, varying
from paring.analysis.memory import base_name
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import Site, module_path, packet
from paring.analysis.weights import groups_of

KEEPS_ZERO = ops.POINTWISE - {
    *("sigmoid", "hardsigmoid", "softplus", "log_sigmoid", "threshold", "exp", "cos", "log", "rsqrt", "reciprocal"),
    *("clamp", "clamp_min", "clamp_max", "pow"),
}
UNEVEN = "its heads lie in one tensor with others, which has to stay a box, and these stay"
WHOLE = "its units go only together with all of '{}', and a layer keeps its last one"
SPREAD = "its units lie along several dimensions of a tensor, which has to stay a box"
_SUMS = ("add", "sub", "rsub")


@dataclass(frozen=True, eq=False)
class Written:
    """A parameter or buffer outside of layers that is added to a stream.

    name: in the network. dim: along which it runs along units. ids (n,): these units. inside: the module that holds it adds it.
    """

    name: str
    dim: int
    ids: Tensor
    inside: bool


@dataclass(frozen=True)
class Stream:
    """What else has to be zero where units of a residual stream are to go, beside the rows of the layers that write into it.

    norms: LayerNorms that write into it themselves, or that something reads which could not take over what the mean adds.
    tied: linear layers with the weight of an embedding, which read it: what closes in it closes there as well. parameters:
    those outside of layers that are added to it.
    """

    norms: tuple[str, ...]
    tied: tuple[str, ...]
    parameters: tuple[Written, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can only go together.

    ids (m,): in the order in which they appear in the first layer. layers: all layers with a row of each, in order of
    execution. norms: BatchNorms that normalise them. coupling: what ties the layers ("" for one layer). reason: why the
    units have to stay ("" if they may go). fronts: modules where a gate leaves zeros or constants for every reader. ends:
    of each layer its own last affine module, for when a front cannot carry a gate. entry (m,): which gate of the group
    each id belongs to, 0..n-1; one each, but for heads. gated (m,): ids on which a gate acts; the others follow. heads:
    the entries are attention heads. rows: of a front whose result is sliced, where a gate acts on it, (units,): one half of
    a layer that makes both factors of a product. readers: all layers that read the units, where gates on their columns would
    do as well; none where something else reads them. at_readers: only there a closed gate leaves nothing behind. stream: a
    residual stream that LayerNorms or RMSNorms read, and nothing else keeps; `reason` says so.
    """

    ids: Tensor
    layers: tuple[str, ...]
    norms: tuple[str, ...]
    coupling: str
    reason: str
    fronts: tuple[str, ...]
    ends: tuple[str, ...]
    entry: Tensor
    gated: Tensor
    heads: bool = False
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    readers: tuple[str, ...] = ()
    at_readers: bool = False
    stream: Stream | None = None

    @property
    def size(self) -> int:
        """How many gates there are."""
        return int(self.entry.max()) + 1


Front = tuple[str, fx.Node | None]
"""A module, and the slice of its result that counts (None: all of it)."""


@dataclass(frozen=True)
class _Flow:
    """What stands last before an activation: modules, whether their zero arrives as zero, nonlinearities on the way.

    even: whether it arrives as the same number everywhere.
    """

    fronts: frozenset[Front]
    zero: bool = True
    bends: int = 0
    even: bool = True


def find_groups(analysis: Interpretation) -> tuple[Group, ...]:
    """All groups of an interpretation, in order of their first layer."""
    firsts: dict[str, Site] = {}
    owners: dict[int, dict[str, None]] = {}
    for site in analysis.sites:
        if site.name not in firsts:
            firsts[site.name] = site
            for unit in site.units[site.units >= 0].tolist():
                owners.setdefault(unit, {})[site.name] = None
    head_of, stack_of = find_heads(analysis), _stacks(firsts)
    spread = spread_out(_without(analysis, stack_of))
    stacks: dict[tuple[str, bool], list[int]] = {}
    classes: dict[tuple[tuple[str, ...], str], list[int]] = {}
    attentions: dict[int, list[int]] = {}
    for unit, homes in owners.items():
        if unit in head_of:
            attentions.setdefault(head_of[unit][0], []).append(unit)
        elif unit in stack_of:
            stacks.setdefault(stack_of[unit][0], []).append(unit)
        else:
            reason = analysis.kept.get(unit) or analysis.mixed.get(unit) or (SPREAD if unit in spread else "")
            reason = reason or next((WHOLE.format(name) for name in homes if _whole(firsts[name], unit)), "")
            classes.setdefault((tuple(homes), reason), []).append(unit)
    groups = [
        _with_stream(analysis, _group(analysis, firsts, layers, reason, torch.tensor(ids), torch.arange(len(ids))))
        for (layers, reason), ids in classes.items()
    ]
    for attention, ids in attentions.items():
        inner = (unit for unit, (one, _) in head_of.items() if one == attention)  # scores too, which no layer computes
        places = tuple(name for name in firsts if any(name in owners[unit] for unit in ids))
        held = analysis.mixed | analysis.kept  # a gate on values leaves what a norm over all queries reads as it is
        reason = next((held[unit] for unit in inner if unit in held), "")
        reason = reason or (UNEVEN if _uneven(analysis, ids) else "")
        entry = torch.tensor([head_of[unit][1] for unit in ids])
        groups.append(_group(analysis, firsts, places, reason, torch.tensor(ids), entry, heads=True))
    for ids in stacks.values():
        places = tuple(name for name in firsts if any(name in owners[unit] for unit in ids))
        reason = next((analysis.kept[unit] for unit in ids if unit in analysis.kept), "")
        reason = reason or next((SPREAD for unit in ids if unit in spread), "")
        entry = torch.tensor([stack_of[unit][1] for unit in ids])
        groups.append(_group(analysis, firsts, places, reason, torch.tensor(ids), entry))
    order = {name: place for place, name in enumerate(firsts)}
    return tuple(sorted(groups, key=lambda group: order[group.layers[0]]))


def _uneven(analysis: Interpretation, ids: list[int]) -> bool:
    """Whether some rows of a box (queries, keys, values by head) have heads with these ids and others have none or fewer."""
    inside = torch.zeros(analysis.units + 1, dtype=torch.bool)
    inside[ids] = True
    boxes = (inside[grid.labels] for grid in analysis.grids if grid.labels.dim() > 2)
    counts = (box.flatten(2).any(2).sum(1) for box in boxes if bool(box.any()))
    return any(bool((count != count[0]).any()) for count in counts)


def _whole(site: Site, unit: int) -> bool:
    """Whether a layer of several units has no other one."""
    return len(site.units) > 1 and bool((site.units == unit).all())


def _stacks(firsts: Mapping[str, Site]) -> dict[int, tuple[tuple[str, bool], int]]:
    """Hidden units: id -> (which recurrent layer, whether they are projected; number). All of its layers and directions keep as many."""
    found: dict[int, tuple[tuple[str, bool], int]] = {}
    for site in firsts.values():
        if isinstance(site.module, Recurrence):
            key = site.module.path, site.name.endswith(".hr")
            for number, unit in enumerate(site.units.tolist()):
                found.setdefault(unit, (key, number))
    return found


def _without(analysis: Interpretation, stack_of: Mapping[int, object]) -> Interpretation:
    """The same without the boxes that recurrent layers ask for: there one number of all layers and directions goes together."""
    grids = [grid for grid in analysis.grids if any(unit not in stack_of for unit in grid.labels.flatten().tolist())]
    return replace(analysis, grids=grids)


def _with_stream(analysis: Interpretation, group: Group) -> Group:
    """The group, and if it is a stream what has to be zero in it."""
    if any(unit in analysis.kept or unit not in analysis.mixed for unit in group.ids.tolist()):
        return group
    inside = torch.zeros(analysis.units + 1, dtype=torch.bool)
    inside[group.ids] = True
    norms = (n for n in analysis.features if n.centred and bool(inside[n.labels].any()))
    tied = (site.name for site in analysis.sites if site.tied and bool(inside[site.columns].any()))
    loose = (one for one in analysis.loose if bool(inside[one.box].any()))
    return replace(
        group,
        stream=Stream(
            tuple(dict.fromkeys(n.name for n in norms if not takes_the_mean(n, analysis.sites))),
            tuple(dict.fromkeys(tied)),
            tuple(
                Written(one.name, one.dim, one.box[:, 0], module_path(one.node) == one.name.rpartition(".")[0])
                for one in loose
                if base_name(one.node) not in ("mul", "div")
            ),
        ),
    )


def spread_out(analysis: Interpretation) -> frozenset[int]:
    """Ids along several dimensions of a tensor, of which no single one can go; among them those of attention heads.

    Where all rows hold the same ids, as the two halves of a gated linear unit do, each of them can go.
    """
    found: set[int] = set()
    for grid in analysis.grids:
        labels = rectangle(grid.labels, varying(grid.labels))  # what a channel is made of goes together
        if labels.dim() < 2:
            continue
        rows = labels.reshape(-1, labels.shape[-1]).sort(-1).values
        if grid.regular or bool((rows != rows[:1]).any()):
            found.update(rows.flatten().tolist())
    return frozenset(found)


def find_heads(analysis: Interpretation) -> dict[int, tuple[int, int]]:
    """Attention units: id -> (attention, head). Slices that live together and the pairs that make them are one head."""
    slices = [row for tie in analysis.slice_ties for row in zip(*tie.parts, strict=True)]
    rows = [torch.cat([part.flatten() for part in row]) for row in slices]
    if not rows:
        return {}
    rows += [
        torch.cat([unit.view(1), columns])
        for m in analysis.contractions
        if not _is_sum(m)
        for unit, columns in zip(m.units, m.columns, strict=True)
    ]
    rows = [known for row in rows if len(known := row[row >= 0])]
    if not rows:
        return {}
    pairs = torch.cat([torch.stack([row[:1].expand_as(row), row]) for row in rows], 1)
    head = representatives(analysis.units, pairs)
    linked = [torch.cat([row[0][:1] for row in zip(*tie.parts, strict=True)]) for tie in analysis.slice_ties]
    heads = [head[first[first >= 0]] for first in linked]
    if not (heads := [h for h in heads if len(h)]):  # slices without a unit of a layer in front
        return {}
    whole = representatives(analysis.units, torch.cat([torch.stack([h[:1].expand_as(h), h]) for h in heads], 1))
    numbers: dict[int, dict[int, int]] = {}
    result: dict[int, tuple[int, int]] = {}
    for unit in torch.unique(torch.cat(rows)).tolist():
        one = int(head[unit])
        among = numbers.setdefault(int(whole[one]), {})
        result[unit] = int(whole[one]), among.setdefault(one, len(among))
    return result


def _group(
    analysis: Interpretation,
    firsts: dict[str, Site],
    layers: tuple[str, ...],
    reason: str,
    ids: Tensor,
    entry: Tensor,
    *,
    heads: bool = False,
) -> Group:
    inside = torch.zeros(analysis.units + 1, dtype=torch.bool)  # the last entry answers for id -1
    inside[ids] = True
    norms = tuple(dict.fromkeys(norm.name for norm in analysis.norms if bool(inside[norm.labels].any())))
    ends = tuple(dict.fromkeys(sole_norm(analysis, firsts[name]) or name for name in layers))
    coupling = analysis.coupled.get(int(ids[0]), "coupled") if len(layers) > 1 else ""
    if heads:
        read = torch.zeros_like(inside)
        for site in analysis.sites:
            read[site.columns] = True
        inside &= read
        reason = reason or ("" if bool(inside.any()) else "no layer reads the heads")
        coupling = "attention heads"
    rows, left = ({}, False) if reason else _fronts(analysis, inside)
    hidden = [name for name in layers if isinstance(firsts[name].module, Recurrence)]
    if hidden and len(layers) > 1 and coupling == "coupled":
        coupling = "layers and directions keep as many"
    rows, left = {**dict.fromkeys(hidden), **rows}, left and not hidden
    some = {name: where for name, where in rows.items() if where is not None}
    readers = () if reason or hidden else _readers(analysis, inside)
    return Group(
        ids, layers, norms, coupling, reason, tuple(rows) or ends, ends, entry, inside[ids], heads, some, readers, left
    )


def _readers(analysis: Interpretation, inside: Tensor) -> tuple[str, ...]:
    """The layers that read these ids, each through columns of its own; none where something else reads them, too."""
    if any(bool(inside[m.columns].any()) for m in analysis.contractions):
        return ()
    sites = [site for site in analysis.sites if bool(inside[site.columns].any()) and not _own(site, inside)]
    fit = all(site.plain and not site.foreign and groups_of(site.module) == 1 for site in sites)
    return tuple(dict.fromkeys(site.name for site in sites)) if fit else ()


def sole_norm(analysis: Interpretation, site: Site) -> str | None:
    """The BatchNorm that is the only reader of this call's output, and reads nothing else."""
    readers = [n for n in analysis.norms if set(site.node.users) == {n.node}]
    calls = Counter(n.name for n in analysis.norms)
    return readers[0].name if readers and calls[readers[0].name] == 1 else None


def _fronts(analysis: Interpretation, inside: Tensor) -> tuple[dict[str, Tensor | None], bool]:
    """The modules that stand last before the readers of these ids, in order of execution; which of their rows if not all.

    And whether a gate there leaves numbers to a reader that cannot take them into its bias, or has none.
    """
    plain = (site for site in analysis.sites if not isinstance(site.module, Recurrence))
    carriers = {site.node: (site.name, site.units) for site in plain}
    carriers |= {norm.node: (norm.name, norm.labels) for norm in analysis.norms}
    sources = {node: name for node, (name, labels) in carriers.items() if bool(inside[labels].any())}
    if not sources:
        return {}, False
    sites = [site for site in analysis.sites if bool(inside[site.columns].any()) and not _own(site, inside)]
    readers = [site.node for site in sites]
    readers += [m.node for m in analysis.contractions if _is_sum(m) and bool(inside[m.columns].any())]
    needed: frozenset[Front] = frozenset()
    for settle in (False, True):  # first what sums and chains need, then the factors of products
        flows = _flows(analysis, next(iter(sources)).graph, sources, carriers.keys(), needed, settle)
        needed = needed.union(*(flows[n].fronts for node in readers for n in node.all_input_nodes if n in flows))
    found: dict[str, Tensor | None] = {}
    for name in dict.fromkeys(sources.values()):
        parts = [part for one, part in needed if one == name]
        labels = next(labels for one, labels in carriers.values() if one == name)
        if parts:
            found[name] = _rows(analysis, name, labels, [part for part in parts if part], None in parts)
    left = any(
        not flows[n].zero and (site.padded or not flows[n].even or getattr(site.module, "bias", None) is None)
        for site in sites
        for n in site.node.all_input_nodes
        if n in flows
    )
    return found, left


def _rows(analysis: Interpretation, name: str, labels: Tensor, parts: list[fx.Node], whole: bool) -> Tensor | None:
    """Rows of a module that these slices carry; None for all, also where a slice shows the rows of others instead."""
    if whole:
        return None
    own, ids = (torch.cat(found) for found in zip(*(analysis.cuts[part] for part in parts), strict=True))
    rows = torch.isin(analysis.rows[name], own)
    asked = ids[torch.isin(ids, labels)]
    return rows if bool(torch.isin(asked, labels[rows]).all()) else None


def _is_sum(contraction: Contraction) -> bool:
    """Are the units added up, rather than met in pairs?"""
    return packet(contraction.node.target) == "sum"


def _own(site: Site, inside: Tensor) -> bool:
    """A grouped convolution whose columns live and die with its own units."""
    columns = site.columns[inside[site.columns]]
    return groups_of(site.module) > 1 and bool(torch.isin(columns, site.units).all())


def _flows(
    analysis: Interpretation,
    graph: fx.Graph,
    sources: dict[fx.Node, str],
    carriers: object,
    needed: frozenset[Front],
    settle: bool,
) -> dict[fx.Node, _Flow]:
    """For every activation that the sources reach without another layer or norm between. settle: choose factors."""
    flows: dict[fx.Node, _Flow] = {}
    recurrent = {site.node for site in analysis.sites if isinstance(site.module, Recurrence)}
    beside = {one.node for one in analysis.loose}
    for node in graph.nodes:
        if node in sources:
            flows[node] = _Flow(frozenset({(sources[node], None)}))
        elif node not in carriers and node not in recurrent:  # type: ignore[operator]
            held = [flows[n] for n in node.all_input_nodes if n in flows]
            if held and node in analysis.cuts:
                flows[node] = replace(held[0], fronts=frozenset((name, node) for name, _ in held[0].fronts))
            elif held:
                flows[node] = _step(node, held, needed, settle, node in beside)
    return flows


def _step(node: fx.Node, held: list[_Flow], needed: frozenset[Front], settle: bool, loose: bool) -> _Flow:
    """loose: a tensor outside of layers has a part in it."""
    name = packet(node.target).rstrip("_")
    if name == "mul" and len(held) == 2 and held[0].fronts != held[1].fronts:
        if not settle:
            return _Flow(frozenset(), held[0].zero or held[1].zero, even=all(f.even for f in held))
        if held[0].zero or held[1].zero:
            return min(held, key=lambda f: (not f.zero, not f.fronts <= needed, f.bends))
    zero, bends, even = all(f.zero for f in held), max(f.bends for f in held), all(f.even for f in held)
    if name in ops.POINTWISE:
        zero, bends = zero and name in KEEPS_ZERO, bends + 1
    elif name in _SUMS and len(held) == 1 and len(set(node.args[:2])) == 2:
        zero, even = False, even and not _varies(node)  # something is added that the group does not govern
    elif name in ops.JOINS and loose:
        zero = even = False
    if not zero and (name in ops.PADS or name in ops.POOLS):
        even = False
    return _Flow(frozenset().union(*(f.fronts for f in held)), zero, bends, even)


def _varies(node: fx.Node) -> bool:
    """Whether a sum has an operand that is not one number for each channel, and not the larger of the two either."""
    made = [arg.meta["val"] for arg in node.all_input_nodes]
    smaller = min(made, key=lambda one: one.numel())
    return len(made) > 1 and sum(n != 1 for n in smaller.shape) > 1
