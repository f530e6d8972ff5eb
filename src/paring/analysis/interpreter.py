"""What every entry of every activation carries, found by running the captured graph on labels and on known values.

Each produced feature (a unit of a Linear, convolution or embedding) gets an integer label. The graph is then run once
on two tensors per activation, both of the activation's shape:

* labels (int64): the unit that the entry carries, -1 for none;
* value (float64): the constant that the entry is for *every* input of the network, NaN where it depends on the input.

Moves (view, permute, cat, ...) are executed on both, so nobody has to derive which column of a flattened linear layer
belongs to which channel. Layers read the labels of their inputs and make new ones. A unit is constant when *all* its
weights on dynamic inputs are zero (never when their sum is). Two labelled operands of an elementwise operation couple
their units. Whatever is not understood is a barrier: the units that reach it are kept, with the reason.

Dynamic values are taken to be finite (zero times dynamic is zero).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis import ops
from paring.analysis.attention_scale import Scaled
from paring.analysis.capture import Captured
from paring.analysis.grids import Contraction, Grid, Layout, SliceTie, grid_dims, layout, rectangle, slices
from paring.analysis.interpretation import Interpretation
from paring.analysis.labels import along, distinct, distinct_pairs, representatives, spread, varying
from paring.analysis.memory import is_inplace, is_view, shared
from paring.analysis.repeats import carries, once, settled
from paring.analysis.state import (
    Alias,
    FeatureNorm,
    Loose,
    NormSite,
    Ref,
    Site,
    State,
    Weight,
    known,
    module_path,
    packet,
    place,
    ties_of,
    unknown,
)
from paring.analysis.work import Product, moving, whole_product, work
from paring.core import kind_of


class Interpreter:
    """One run over the graph, sizes in the forward as they are; the rules call back into it.

    rules: what each operation does, and what is looked at beside that. skip: nodes that are left out. finer, recurrent: see `interpret`.
    """

    free = False

    def __init__(
        self,
        net: nn.Module,
        captured: Captured,
        rules: Rules,
        *,
        training: bool,
        finer: bool = False,
        recurrent: bool = False,
        skip: Collection[fx.Node] = (),
    ) -> None:
        self.net, self.captured, self.training = net, captured, training
        self._rules, self._skip, self.finer, self.recurrent = rules, skip, finer, recurrent
        self.grids: list[Grid] = []
        self.slice_ties: list[SliceTie] = []
        self.contractions: list[Contraction] = []
        self.scaled: list[Scaled] = []
        self.aliases: dict[str, Alias] = {}
        self.products: list[Product] = []
        self.product_nodes: dict[str, fx.Node] = {}
        self.uncounted: dict[str, str] = {}
        self.held_back = False
        self.shared: set[fx.Node] = set()
        self.parts: dict[fx.Node, list[Ref]] = {}
        self.part_labels: dict[fx.Node, Tensor] = {}
        self.part_columns: dict[str, Tensor] = {}
        self.loose: list[Loose] = []
        self.moving = moving(list(captured.nodes), {*captured.tensors, *captured.constants})
        self._layouts: dict[fx.Node, list[Layout]] = {}
        self._cuts: dict[fx.Node, Tensor] = {}
        self.sites: list[Site] = []
        self.norms: list[NormSite] = []
        self.features: list[FeatureNorm] = []
        self.centring: dict[fx.Node, FeatureNorm] = {}
        self.positive: set[fx.Node] = set()
        self.weights: dict[fx.Node, Weight] = {}
        self.slopes: list[NormSite] = []
        self._env: dict[fx.Node, object] = {}
        self._ids: dict[str, Tensor] = {}
        self._count = 0
        self._kept: list[tuple[Tensor, str]] = []
        self._pairs: list[tuple[Tensor, str]] = []
        self._zeros: set[fx.Node] = set()

    def run(self) -> Interpretation:
        """Execute every node; activations go as soon as nothing needs them."""
        last = {used: node for node in self.captured.nodes for used in node.all_input_nodes}
        ending: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            ending.setdefault(node, []).append(used)
        self.shared = shared(self.captured.nodes)
        for node in self.captured.nodes:
            if node in self._skip:
                continue
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self._env[node] = operator.attrgetter(str(node.target))(self.captured.program.graph_module)
            elif node.op == "output":
                for state in _states(self.values(node.args)):
                    self.keep(state.labels, "network output")
            else:
                self._env[node] = self._counted_call(node)
            states = _states(self._env.get(node))
            if node.op == "call_function" and states and all(map(_zero, states)):
                self._zeros.add(node)
            self._store(node, states)
            self._note(node, states)
            for spent in ending.get(node, ()):
                if not isinstance(self._env.get(spent), Ref):
                    self._env.pop(spent, None)
        users: dict[str, set[fx.Node]] = {}
        for node, held in self._env.items():
            if isinstance(held, Ref):
                users.setdefault(held.name, set()).update(one for one in node.users if not self._same(held, one))
        self._rules.shared(self, users)
        self.loose = self._rules.loose(self)
        return self._finish()

    def parameter(self, node: fx.Node) -> Ref | None:
        """The parameter or buffer that a node holds, not yet used as an operand; None where it is something else."""
        held = self._env.get(node)
        return held if isinstance(held, Ref) else None

    def _same(self, held: Ref, user: fx.Node) -> bool:
        """Whether a result is the parameter itself, or ends in it by reshapes alone."""
        if (made := self.parameter(user)) is not None:
            return made.tensor is held.tensor
        return packet(user.target) in ops.BARE and bool(user.users) and all(self._same(held, one) for one in user.users)

    def note_layouts(self, node: fx.Node, layouts: list[Layout]) -> None:
        """Remember where units lie in something that is no activation."""
        self._layouts[node] = layouts

    def _note(self, node: fx.Node, states: list[State]) -> None:
        """Look at a result."""
        for state in states:
            self._rules.seen(self, node, state)

    def _store(self, node: fx.Node, states: list[State]) -> None:
        """Once where entries repeat themselves; what is written into through a view gets memory of its own."""
        if node not in self.shared:
            for state in states:
                state.labels, state.value = settled(state.labels), settled(state.value)
            return
        sources = _states(self.values(node.args[:1])) if is_view(node) else []
        there = {part.untyped_storage().data_ptr() for state in sources for part in (state.labels, state.value)}

        def own(part: Tensor) -> Tensor:
            view = part.untyped_storage().data_ptr() in there
            return part if view else part.clone(memory_format=torch.contiguous_format)

        for state in states:
            state.labels, state.value = own(state.labels), own(state.value)

    def _placeholder(self, node: fx.Node) -> object:
        written = any(packet(user.target).endswith("_") and user.args[0] is node for user in node.users)
        if node.name in self.captured.tensors and not written:
            name = self.captured.tensors[node.name]
            path, _, leaf = name.rpartition(".")
            kind = kind_of(self.net.get_submodule(path))
            owner = path if kind is not None and leaf in kind.own else None
            return Ref(name, operator.attrgetter(name)(self.net), owner)
        if node.name in self.captured.constants:
            return known(self.captured.constants[node.name])
        return unknown(node)

    def _counted_call(self, node: fx.Node) -> object:
        """A call, with what it multiplies: layers and products whose units are known come from the rules."""
        sites, products = len(self.sites), len(self.products)
        result = self._call(node)
        try:
            total = None if len(self.sites) > sites else work(node)
        except NotImplementedError as unknown_work:
            self.uncounted.setdefault(module_path(node), str(unknown_work))
            total = None
        found = self.products[products:]
        macs, adds = (0, 0) if total is None else (self.per_example(node, n) for n in total)
        if sum(product.macs * len(product.left) for product in found) != macs:
            self.products[products:] = [whole_product(node, node.name, macs, adds)] if macs else []
        self.product_nodes.update((product.name, node) for product in self.products[products:])
        return result

    def per_example(self, node: fx.Node, count: int) -> int:
        """The share of one example in what a call does for the batch; all of it where no input has a part in it."""
        return -(-count // self.captured.batch) if node in self.moving else count

    def of_layers(self, labels: Tensor) -> Tensor:
        """Labels without those of units that no layer computes, such as a head as a whole: -1 there."""
        owned = torch.zeros(self._count + 1, dtype=torch.bool)  # the last entry answers for -1
        for site in self.sites:
            owned[site.units] = True
        return torch.where(owned[labels], labels, -1)

    def _call(self, node: fx.Node) -> object:
        name = packet(node.target)
        held = [self._env[n] for n in node.all_input_nodes]
        if name.startswith(("_assert", "sym_constrain")):
            return None
        if node.target is operator.getitem:
            whole, index = (self.values(arg) for arg in node.args)
            return whole[index] if isinstance(whole, list | tuple) else self.barrier(node)
        if name == "sym_size":
            return self.values(node.args[0]).value.shape[node.args[1]]
        if any(isinstance(v, State | Ref | Weight | list | tuple) for v in held):
            return self._apply(node, name)
        if name in ops.FACTORIES:
            return known(self._execute(node))
        if isinstance(node.target, torch._ops.OpOverload) or any(v is None for v in held):
            return unknown(node)
        return self._execute(node)

    def _apply(self, node: fx.Node, name: str) -> object:
        """The result of a node that has tensor arguments. In-place operations also write into their first argument."""
        inplace = is_inplace(name)
        rule = self._rules.of.get(name.rstrip("_") if inplace else name, self._rules.unlisted)
        try:
            result = rule(self, node)
        except _unknown_number():  # a number that a tensor was turned into
            result = self.barrier(node)
        target = self.values(node.args[0]) if inplace and node.args else None
        if isinstance(target, State) and isinstance(result, State):
            if node in self.shared and target.value.shape == result.value.shape:
                target.labels.copy_(result.labels)
                target.value.copy_(result.value)
            else:  # nothing else holds this memory, or it is transpose_ and the like
                target.labels, target.value = result.labels, result.value
            target.sums = result.sums
            return target
        return result

    def _execute(self, node: fx.Node) -> Any:
        assert callable(node.target)
        return node.target(*self.values(node.args), **self.values(node.kwargs))

    def values(self, tree: Any) -> Any:
        """Arguments with nodes replaced by what they hold."""
        return pytree.tree_map(lambda v: self._env[v] if isinstance(v, fx.Node) else v, tree)

    def states(self, tree: Any) -> Any:
        """Like `values`, with parameters and buffers turned into known constants."""

        def one(leaf: object) -> object:
            held = self._env[leaf] if isinstance(leaf, fx.Node) else leaf
            if isinstance(held, Weight) and isinstance(leaf, fx.Node):
                return self._rules.weight(held, leaf)
            return pytree.tree_map(lambda v: self._operand(v) if isinstance(v, Ref) else v, held)

        return pytree.tree_map(one, tree, is_leaf=lambda v: isinstance(v, fx.Node))

    def _operand(self, held: Ref) -> State:
        """A known tensor; of a layer's own tensors per unit, every entry carries its unit."""
        state = known(held.tensor)
        if held.owner is not None:
            state.labels = spread(self.new_units(held.owner, len(held.tensor)), tuple(held.tensor.shape), 0).clone()
        return state

    def whole(self, held: Ref) -> Tensor:
        """The parameter or buffer that this is, or is a part of."""
        found: Tensor = operator.attrgetter(held.name)(self.net)
        return found

    def tied(self, *held: Ref | None) -> bool:
        """Is one of these parameters tied to another?"""
        ties = ties_of(self.net)
        return any(one is not None and one.name in ties for one in held)

    def keep(self, labels: Tensor, reason: str) -> None:
        """Units that must stay, and why."""
        self._kept.append((distinct(labels), reason))

    def barrier(self, node: fx.Node) -> object:
        """Keep all that the node reads; its result is unknown."""
        states = _states(self.states((node.args, node.kwargs)))
        if states and all(not carries(s.labels) and not bool(once(s.value).isnan().any()) for s in states):
            return self._computed(node)
        for state in states:
            self.keep(state.labels, f"read by {packet(node.target).rstrip('_')} in {place(node)}")
        return unknown(node)

    def _computed(self, node: fx.Node) -> object:
        """The result of an operation on known tensors alone, such as a mask or a table of positions."""
        target = node.target
        assert callable(target)
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            return unknown(node)

        def typed(arg: object) -> object:
            held = self.states(arg)
            if isinstance(held, State) and isinstance(arg, fx.Node):
                return held.value.to(arg.meta["val"].dtype)
            return held

        args, kwargs = pytree.tree_map(typed, (node.args, node.kwargs), is_leaf=lambda v: isinstance(v, fx.Node))
        kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
        result = target(*args, **kwargs)
        return pytree.tree_map(lambda v: known(v) if isinstance(v, Tensor) else v, result)

    def grid(self, labels: Tensor, *, regular: bool = False) -> None:
        """Units that lie along several dimensions, or in a part that must not become empty."""
        if dims := grid_dims(labels):
            self.grids.append(Grid(rectangle(labels, dims), regular))

    def tie_slices(self, parts: list[tuple[Tensor, list[int]]]) -> None:
        """Tensors that meet slice by slice along the dimensions given for each."""
        self.slice_ties.append(SliceTie(tuple(slices(labels, dims) for labels, dims in parts)))

    def lines(self, labels: Tensor, dim: int) -> Tensor | None:
        """The labels of the slices along `dim`, (size,); None where a slice holds several units that cannot shrink together."""
        return along(labels, dim)

    def pin(self, labels: Tensor, dims: set[int], reason: str) -> None:
        """Units along these dimensions meet what cannot shrink: they stay, or go only all together."""
        lying = set(varying(labels))
        if lying <= dims:
            self.keep(labels, reason)
        elif lying & dims:
            rows = slices(labels, sorted(lying - dims))
            self.couple(rows[:, :1].expand_as(rows).contiguous(), rows, reason)

    def couple(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Units that meet entry by entry (same shapes) belong together; one that meets none has to stay."""
        for d in {*range(a.dim())} - {*varying(a), *varying(b)}:
            a, b = a.narrow(d, 0, min(1, a.shape[d])), b.narrow(d, 0, min(1, b.shape[d]))
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self._pairs.append((distinct_pairs(torch.stack([a[both], b[both]])), reason))
        for one, other in ((a, b), (b, a)):
            alone = (one >= 0) & (other < 0)
            if alone.any():
                self.keep(one[alone], f"{reason} with a tensor that cannot shrink")

    def together(self, labels: Tensor) -> Tensor:
        """Labels in which units that were coupled until now have one id."""
        return self._groups()[labels]

    def _groups(self) -> Tensor:
        """The id of each unit's group, (units + 1,): the last entry answers for -1."""
        pairs = torch.cat([p for p, _ in self._pairs], 1) if self._pairs else torch.zeros(2, 0, dtype=torch.int64)
        return torch.cat([representatives(self._count, pairs), torch.tensor([-1])])

    def new_units(self, name: str, count: int) -> Tensor:
        """Fresh ids for the units of a layer; the same ones when the layer is called again."""
        if len(self._ids.get(name, ())) not in (0, count):
            raise ValueError(
                f"'{name}' has {len(self._ids[name])} units and {count} entries in a tensor that its kind names as one per unit; "
                "correct `per_unit` where the class is registered"
            )
        if name not in self._ids:
            self._ids[name] = torch.arange(self._count, self._count + count)
            self._count += count
        return self._ids[name].clone()

    def _finish(self) -> Interpretation:
        groups = self._groups()
        result = Interpretation(self._count, self.sites, self.norms, self.slopes)
        for found, reason in self._pairs:
            for group in distinct(groups[found[0]]).tolist():
                result.coupled.setdefault(group, reason)
        for labels, reason in self._kept:
            for group in distinct(groups[labels]).tolist():
                result.kept.setdefault(group, reason)
        kept = {unit for labels, _ in self._kept for unit in labels.tolist()}
        result.scaled = [one.settle(result.sites, result.norms, self.contractions, kept, groups) for one in self.scaled]
        result.aliases, result.held_back, result.features = self.aliases, self.held_back, self.features
        result.grids = [replace(grid, labels=groups[grid.labels]) for grid in self.grids]
        result.slice_ties = [SliceTie(tuple(groups[part] for part in tie.parts)) for tie in self.slice_ties]
        result.contractions = [replace(m, units=groups[m.units], columns=groups[m.columns]) for m in self.contractions]
        result.products = [replace(p, left=groups[p.left], right=groups[p.right]) for p in self.products]
        result.product_nodes = self.product_nodes
        result.uncounted, result.zeros = self.uncounted, self._zeros
        result.layouts = {n: [replace(x, box=groups[x.box]) for x in many] for n, many in self._layouts.items()}
        result.loose = [replace(one, box=groups[one.box]) for one in self.loose]
        result.rows = {one.name: one.units.clone() for one in self.sites} | {
            n.name: n.labels.clone() for n in self.norms
        }
        result.cuts = {node: (ids, groups[ids]) for node, ids in self._cuts.items()}
        result.names = {name: groups[ids] for name, ids in self._ids.items()}
        for site in result.sites:
            site.units, site.columns = groups[site.units], groups[site.columns]
        for norm in [*result.norms, *result.slopes]:
            norm.labels = groups[norm.labels]
        for feature in result.features:
            feature.labels = groups[feature.labels]
            for unit in () if feature.response else distinct(feature.labels).tolist():
                result.mixed.setdefault(unit, feature.reason)
        return result


def _zero(state: State) -> bool:
    value = once(state.value)
    return value.numel() > 0 and float(value.flatten()[0]) == 0 and bool((value == 0).all())


def _states(tree: object) -> list[State]:
    return [v for v in pytree.tree_leaves(tree) if isinstance(v, State)]


class FreeInterpreter(Interpreter):
    """One run over the graph where sizes in the forward may change with the widths."""

    free = True

    def lines(self, labels: Tensor, dim: int) -> Tensor | None:
        """The same; units that share a slice go together."""
        row = along(labels, dim)
        if row is not None or dim % labels.dim() not in varying(labels):
            return row
        rows = slices(labels, [dim % labels.dim()])
        self.couple(rows[:, :1].expand_as(rows).contiguous(), rows, "all that a channel is made of goes together")
        return rows[:, 0].clone()

    def _note(self, node: fx.Node, states: list[State]) -> None:
        super()._note(node, states)
        if any(carries(state.labels) for state in states):
            self._layouts[node] = [layout(state.labels) for state in states]
            if len(states) == 1 and packet(node.target) in ("getitem", *ops.CUTS):
                self._cuts[node] = distinct(states[0].labels)


Rule = Callable[[Interpreter, fx.Node], object]


@dataclass(frozen=True)
class Rules:
    """What the interpreter asks, operation by operation and at the end.

    of: what each operation does, by the name of its aten packet without the underscore of in-place ones. unlisted: what one
    without a rule does. seen: looks at each result before anything reads it. shared: keeps what is used more than once
    (given what reads each parameter). loose: the tensors outside of layers that shrink. weight: a parameter that was moved or
    chosen from, as an operand.
    """

    of: Mapping[str, Rule]
    unlisted: Rule
    seen: Callable[[Interpreter, fx.Node, State], None]
    shared: Callable[[Interpreter, Mapping[str, set[fx.Node]]], None]
    loose: Callable[[Interpreter], list[Loose]]
    weight: Callable[[Weight, fx.Node], State]


def _unknown_number() -> type[Exception]:
    """What torch raises where a traced number has to be known; imported late, because it brings all of sympy."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return GuardOnDataDependentSymNode
