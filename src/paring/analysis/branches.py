"""Residual branches: what is added to a stream, and all that only this branch needs.

An addition x + b is residual where b is computed from x, or from what x itself was made of by residual additions (two
branches that read one stream). Closing the branch leaves x. A gate on it multiplies the last layers of b: walking back from
the addition, the last layer or norm on every path, as long as nothing on the way turns a zero into something else.

What goes with the branch are the operations that the outputs do not depend on when b is left out of the sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from paring.analysis import ops
from paring.analysis.alive import alive_nodes
from paring.analysis.capture import Captured
from paring.analysis.interpret import Interpretation
from paring.analysis.memory import base_name
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import FeatureNorm, NormSite, module_path, module_paths, packet
from paring.analysis.unit_groups import KEEPS_ZERO
from paring.core.refusal import Refusal

_SUMS = ("add", "sub")
_ALONG = ops.MOVES | ops.CASTS | ops.DROPOUTS | ops.POOLS | ops.PADS | ops.REDUCTIONS | KEEPS_ZERO | {"div", "getitem"}
_ONE_OVER = ("rsqrt", "reciprocal")
_PRODUCTS = {"scaled_dot_product_attention": 2, "matmul": 1, "bmm": 1}
"""Products whose result is zero where this argument is."""


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    name: its first carrier. module: where the addition is. carriers: layers and norms whose results a gate multiplies.
    members: names of layers, norms, products and parameters that only the branch needs, in modules that do nothing else: all
    that goes when it is closed. reason: why there can be no gate.
    """

    name: str
    module: str
    carriers: tuple[str, ...]
    members: frozenset[str]
    reason: str = ""


@dataclass(frozen=True)
class _Rows:
    """Nodes of all layers and norms, and what belongs to them."""

    calls: dict[str, list[fx.Node]]
    names: dict[fx.Node, str]
    products: dict[str, fx.Node]


def find_branches(net: nn.Module, analysis: Interpretation, captured: Captured) -> tuple[Branch, ...]:
    """All residual branches with a layer in them, in order of execution."""
    calls: dict[str, list[fx.Node]] = {}
    names: dict[fx.Node, str] = {}
    called = [(one.name, one.node) for one in analysis.sites] + [(one.name, one.node) for one in analysis.norms]
    called += [(path, node) for node in captured.nodes if _is_layer_norm(net, node, path := module_path(node))]
    for name, node in called:
        calls.setdefault(name, []).append(node)
        names[node] = name
    for norm in analysis.features:
        if not norm.loose and norm.node not in names:
            calls.setdefault(norm.name, []).append(norm.node)
    rows = _Rows(calls, names, analysis.product_nodes)
    before, bit = _before(captured)
    masks = [sum(bit[one] for one in set(nodes)) for nodes in calls.values()]
    streams: dict[fx.Node, int] = {}
    found: dict[str, Branch] = {}
    for node in captured.nodes:
        terms = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
        if base_name(node) not in _SUMS or len(terms) != 2 or terms[0] is terms[1]:
            continue
        for skip, term in (terms, terms[::-1] if base_name(node) == "add" else terms):
            stream = _stream(skip, streams, bit)
            if before[term] & stream and not bit[term] & stream:
                streams[node] = stream | bit[node]
                alone = (before[term] | bit[term]) & ~(before[skip] | bit[skip])
                could = any(calls_of & alone == calls_of for calls_of in masks)
                branch = _branch(node, term, captured, rows) if could else None
                if branch is not None and branch.name not in found:
                    found[branch.name] = branch
                break
    return tuple(found.values())


def _is_layer_norm(net: nn.Module, node: fx.Node, path: str) -> bool:
    """Whether this is what a LayerNorm of torch computes."""
    return base_name(node) == "layer_norm" and type(net.get_submodule(path)) is nn.LayerNorm


def _before(captured: Captured) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """What each node is computed from, as the sum of the bits of these nodes, and the bit of each."""
    bit: dict[fx.Node, int] = {}
    before: dict[fx.Node, int] = {}
    for number, node in enumerate(captured.nodes):
        bit[node], before[node] = 1 << number, 0
        for one in node.all_input_nodes:
            before[node] |= before[one] | bit[one]
    return before, bit


def _stream(node: fx.Node, streams: Mapping[fx.Node, int], bit: Mapping[fx.Node, int]) -> int:
    """The bits of what a node was made of by moves and residual additions alone."""
    found = bit[node]
    while node not in streams and base_name(node) in ops.MOVES | ops.CASTS | ops.DROPOUTS:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            break
        node = source
        found |= bit[node]
    return found | streams.get(node, 0)


def _branch(node: fx.Node, term: fx.Node, captured: Captured, rows: _Rows) -> Branch | None:
    alive = alive_nodes(captured, lambda one, used: one is node and used is term)
    gone = [name for name, nodes in rows.calls.items() if not alive.intersection(nodes)]
    if not gone:
        return None
    homes = {name: {module_path(one) for one in rows.calls[name]} for name in gone}
    homes |= {name: {module_path(one)} for name, one in rows.products.items() if one not in alive}
    for one in captured.nodes:
        if one.op == "placeholder" and one.name in captured.tensors and not alive.intersection(one.users) and one.users:
            full = captured.tensors[one.name]
            homes[full] = {full.rpartition(".")[0]}
    living = {"", *(path for one in alive for path in module_paths(one))}
    members = {name for name, home in homes.items() if not home & living}
    carriers = _carriers(term, alive, rows)
    if isinstance(carriers, Refusal):
        return Branch(gone[-1], module_path(node), (), frozenset(members), carriers.reason)
    return Branch(carriers[0], module_path(node), carriers, frozenset(members))


def _carriers(term: fx.Node, alive: Collection[fx.Node], rows: _Rows) -> tuple[str, ...] | Refusal:
    """The layers and norms that stand last before the sum."""
    found: dict[str, None] = {}
    todo = [term]
    while todo:
        one = todo.pop()
        name = base_name(one)
        if one in alive:
            return Refusal(f"what it adds is read elsewhere, too ({packet(one.target)} in '{module_path(one)}')")
        if one in rows.names:
            if len(rows.calls[rows.names[one]]) > 1:
                return Refusal(f"'{rows.names[one]}' is called more than once")
            found[rows.names[one]] = None
        elif name in _SUMS or name in ops.JOINS:
            todo += one.all_input_nodes
        elif name in _ALONG or name in _PRODUCTS:
            todo.append(one.all_input_nodes[_PRODUCTS.get(name, 0)])
        elif name == "mul":
            factors = [used for used in one.all_input_nodes if used not in alive]
            if any(_norms(used, alive, rows) for used in factors):
                return Refusal(f"a norm in '{module_path(one)}' would undo what a gate in front of it multiplies")
            made = [_carriers(used, alive, rows) for used in factors]
            first = next((one for one in made if not isinstance(one, Refusal)), None)
            if first is None:
                return made[0] if made else Refusal("it ends in a product of other things")
            found |= dict.fromkeys(first)
        else:
            return Refusal(f"it ends in {name}, which a gate on what is before would not close")
    return tuple(sorted(found, key=list(rows.calls).index))


def _norms(factor: fx.Node, alive: Collection[fx.Node], rows: _Rows) -> bool:
    """Whether a factor is one over the size of something in the branch, as in an RMSNorm."""
    seen, todo = {factor}, [factor]
    while todo:
        one = todo.pop()
        if base_name(one) in _ONE_OVER:
            return True
        for used in one.all_input_nodes:
            if used not in seen and used not in alive and one not in rows.names:
                seen.add(used)
                todo.append(used)
    return False


def parameters_beside(net: nn.Module, analysis: Interpretation) -> dict[str, int]:
    """Parameters that no layer, norm or row of the wiring counts, with their entries."""
    told = {one.name for one in analysis.loose}
    for site in analysis.sites:
        if isinstance(site.module, Recurrence):
            told |= {f"{site.module.path}.{leaf}" if site.module.path else leaf for leaf in site.module.leaves}
        else:
            own = (f"{site.name}.{leaf}" if site.name else leaf for leaf, _ in site.module.named_parameters())
            told |= {analysis.aliases[name].name if name in analysis.aliases else name for name in own}
    norms: list[NormSite | FeatureNorm] = [*analysis.norms, *(norm for norm in analysis.features if not norm.loose)]
    for norm in norms:
        told |= {f"{norm.name}.{leaf}" if norm.name else leaf for leaf, _ in norm.module.named_parameters()}
    return {
        name: held.numel() for name, held in net.named_parameters() if name not in told and isinstance(held, Tensor)
    }
