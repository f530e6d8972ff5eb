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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.graph import ops
from paring.graph.capture import Captured
from paring.graph.labels import distinct, distinct_pairs, representatives
from paring.graph.rules import apply_rule
from paring.graph.state import NormSite, Ref, Site, State, known, module_path, packet, place, unknown


@dataclass
class Interpretation:
    """All layer calls in order, and per group of units why it is kept (`kept`) or tied to others (`coupled`).

    Ids in sites and norms are group ids: the smallest id of all units that residual adds tie together.
    """

    units: int
    sites: list[Site] = field(default_factory=list)
    norms: list[NormSite] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    coupled: dict[int, str] = field(default_factory=dict)


def interpret(net: nn.Module, captured: Captured, *, training: bool) -> Interpretation:
    """Labels and values of the captured `net`. training: batch norms and dropouts as in train mode, else as in eval."""
    with torch.no_grad():
        return Interpreter(net, captured, training).run()


class Interpreter:
    """One run over the graph; the rules call back into it."""

    def __init__(self, net: nn.Module, captured: Captured, training: bool) -> None:
        self.net, self.captured, self.training = net, captured, training
        self.sites: list[Site] = []
        self.norms: list[NormSite] = []
        self._env: dict[fx.Node, object] = {}
        self._ids: dict[str, Tensor] = {}
        self._count = 0
        self._kept: list[tuple[Tensor, str]] = []
        self._pairs: list[tuple[Tensor, str]] = []

    def run(self) -> Interpretation:
        """Execute every node; activations go as soon as nothing needs them."""
        last = {used: node for node in self.captured.nodes for used in node.all_input_nodes}
        ending: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            ending.setdefault(node, []).append(used)
        for node in self.captured.nodes:
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self._env[node] = operator.attrgetter(str(node.target))(self.captured.program.graph_module)
            elif node.op == "output":
                for state in _states(self.values(node.args)):
                    self.keep(state.labels, "network output")
            else:
                self._env[node] = self._call(node)
            for spent in ending.get(node, ()):
                if not isinstance(self._env[spent], Ref):
                    del self._env[spent]
        self._keep_shared()
        return self._finish()

    def _placeholder(self, node: fx.Node) -> object:
        written = any(packet(user.target).endswith("_") and user.args[0] is node for user in node.users)
        if node.name in self.captured.tensors and not written:
            name = self.captured.tensors[node.name]
            return Ref(name, operator.attrgetter(name)(self.net))
        if node.name in self.captured.constants:
            return known(self.captured.constants[node.name])
        return unknown(node)

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
        if any(isinstance(v, State | Ref | list | tuple) for v in held):
            return apply_rule(self, node, name)
        if name in ops.FACTORIES:
            return known(self._execute(node))
        if isinstance(node.target, torch._ops.OpOverload) or any(v is None for v in held):
            return unknown(node)
        return self._execute(node)

    def _execute(self, node: fx.Node) -> Any:
        assert callable(node.target)
        return node.target(*self.values(node.args), **self.values(node.kwargs))

    def values(self, tree: Any) -> Any:
        """Arguments with nodes replaced by what they hold."""
        return pytree.tree_map(lambda v: self._env[v] if isinstance(v, fx.Node) else v, tree)

    def states(self, tree: Any) -> Any:
        """Like `values`, with parameters and buffers turned into known constants."""
        return pytree.tree_map(lambda v: known(v.tensor) if isinstance(v, Ref) else v, self.values(tree))

    def keep(self, labels: Tensor, reason: str) -> None:
        """Units that must stay, and why."""
        self._kept.append((distinct(labels), reason))

    def barrier(self, node: fx.Node) -> object:
        """Keep all that the node reads; its result is unknown."""
        for state in _states(self.values((node.args, node.kwargs))):
            self.keep(state.labels, f"read by {packet(node.target).rstrip('_')} in {place(node)}")
        return unknown(node)

    def couple(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Units that meet entry by entry (same shapes) belong together; one that meets none has to stay."""
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self._pairs.append((distinct_pairs(torch.stack([a[both], b[both]])), reason))
        for one, other in ((a, b), (b, a)):
            alone = (one >= 0) & (other < 0)
            if alone.any():
                self.keep(one[alone], f"{reason} with a tensor that cannot shrink")

    def new_units(self, name: str, count: int) -> Tensor:
        """Fresh ids for the units of a layer; the same ones when the layer is called again."""
        if name not in self._ids:
            self._ids[name] = torch.arange(self._count, self._count + count)
            self._count += count
        return self._ids[name].clone()

    def _keep_shared(self) -> None:
        """Layers that are called twice, or whose parameters are tied or used elsewhere too, keep units and inputs."""
        calls: dict[str, set[fx.Node]] = {}
        for name, node in [(s.name, s.node) for s in self.sites] + [(n.name, n.node) for n in self.norms]:
            calls.setdefault(name, set()).add(node)
        ties = _ties(self.net)
        users: dict[str, set[fx.Node]] = {}
        for node, held in self._env.items():
            if isinstance(held, Ref):
                users.setdefault(held.name, set()).update(node.users)
        for name, nodes in calls.items():
            foreign = ""
            if any(module_path(node) != name for node in nodes):
                foreign = f"the weight of '{name}' is used without calling the module"
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                full = f"{name}.{leaf}" if name else leaf
                if full in ties:
                    foreign = foreign or f"'{full}' is tied to '{ties[full]}'"
                if users.get(full, set()) - nodes:
                    foreign = foreign or f"'{full}' is also used outside its layer"
            reason = foreign or (f"'{name}' is called {len(nodes)} times" if len(nodes) > 1 else "")
            if not reason:
                continue
            for norm in self.norms:
                if norm.name == name:
                    self.keep(norm.labels, reason)
            for site in self.sites:
                if site.name == name:
                    site.shared, site.foreign = True, foreign
                    self.keep(site.units, reason)
                    self.keep(site.columns, f"read by a shared layer: {reason}")

    def _finish(self) -> Interpretation:
        pairs = torch.cat([p for p, _ in self._pairs], 1) if self._pairs else torch.zeros(2, 0, dtype=torch.int64)
        groups = torch.cat([representatives(self._count, pairs), torch.tensor([-1])])  # index -1 stays -1
        result = Interpretation(self._count, self.sites, self.norms)
        for found, reason in self._pairs:
            for group in distinct(groups[found[0]]).tolist():
                result.coupled.setdefault(group, reason)
        for labels, reason in self._kept:
            for group in distinct(groups[labels]).tolist():
                result.kept.setdefault(group, reason)
        for site in result.sites:
            site.units, site.columns = groups[site.units], groups[site.columns]
        for norm in result.norms:
            norm.labels = groups[norm.labels]
        return result


def _states(tree: object) -> list[State]:
    return [v for v in pytree.tree_leaves(tree) if isinstance(v, State)]


def _ties(net: nn.Module) -> dict[str, str]:
    """Parameter name -> another name of the same storage, for those that have one."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
    return {name: group[1 if name == group[0] else 0] for group in names.values() if len(group) > 1 for name in group}
