"""From a plan to a `GraphNet`: capture both modes, write the new sizes, keep the parameters by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from paring.analysis.capture import Captured, CaptureError, capture, untouched_random
from paring.analysis.free_sizes import free_sizes
from paring.analysis.interpret import Interpretation, interpret
from paring.analysis.layer_rules import argument
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import packet
from paring.analysis.weights import is_a
from paring.core import Example, Inputs
from paring.core.evaluating import evaluating
from paring.core.nested import as_nested, as_shapes
from paring.core.refusal import Refusal
from paring.core.select_linear import SelectLinear
from paring.removal.graph_net import NAMES, GraphNet, Recipe, Script
from paring.removal.modes import same_in_both_modes
from paring.removal.plan import full_name
from paring.removal.rewrite import RewriteError, rewrite
from paring.removal.size_guards import taken
from paring.removal.tolerances import as_type, in_type


class GraphFormError(ValueError):
    """The network cannot be given in graph form; the message says why."""


@dataclass(frozen=True)
class Keeps:
    """Which units stay, by the name of what they belong to: (units,) bool each."""

    masks: dict[str, Tensor]

    @classmethod
    def of(cls, analysis: Interpretation, kept: Tensor) -> Keeps:
        """Those of a plan's ids."""
        return cls({name: kept[ids] for name, ids in analysis.names.items()})

    def ids(self, analysis: Interpretation) -> Tensor:
        """The same for the ids of another interpretation, (ids + 1,). Raises `GraphFormError` for other names."""
        if {n: len(ids) for n, ids in analysis.names.items()} != {n: len(m) for n, m in self.masks.items()}:
            raise GraphFormError("train and eval mode run different layers")
        kept = torch.zeros(analysis.units + 1, dtype=torch.bool)
        kept[-1] = True
        for name, ids in analysis.names.items():
            kept[ids[self.masks[name]]] = True
        if any(not torch.equal(kept[ids], self.masks[name]) for name, ids in analysis.names.items()):
            raise GraphFormError("train and eval mode tie different units together")
        return kept


class Captures:
    """Graphs of a network on an example: train and eval mode, and per floating type where the forward names one.

    sizes: of the example's sizes behind the batch those that stay free where the capture allows it; None: all at which the
    network runs.
    """

    def __init__(self, net: nn.Module, example: Example, sizes: Sequence[int] | None = None) -> None:
        self.net, self.example = net, Inputs.of(example)
        self._sizes = None if sizes is None else tuple(sizes)
        self.dtype = _dtype(net)
        self._made: dict[tuple[bool, torch.dtype], tuple[Captured, Interpretation] | ValueError] = {}

    def of(self, mode: bool, dtype: torch.dtype) -> tuple[Captured, Interpretation]:
        """The graph in this mode for parameters of this type. Raises `CaptureError`, `GraphFormError`."""
        if dtype != self.dtype and not _names_types(self.of(mode, self.dtype)[0]):
            return self.of(mode, self.dtype)
        if mode != self.net.training and self.one_for_both:
            mode = self.net.training
        if (mode, dtype) not in self._made:
            try:
                self._made[mode, dtype] = self._make(mode, dtype)
            except (CaptureError, GraphFormError) as error:
                self._made[mode, dtype] = error
        made = self._made[mode, dtype]
        if isinstance(made, ValueError):
            raise made
        return made

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes behind the batch that may be left free."""
        return tuple(self._others) if self._sizes is None else self._sizes

    @property
    def others(self) -> list[Inputs]:
        """Calls of the network at other sizes, one for each of `sizes`; none where these were given."""
        return list(self._others.values()) if self._sizes is None else []

    def fix_sizes(self) -> None:
        """Let only the batch be free from now on."""
        self._sizes = ()
        self._made.clear()

    @cached_property
    def _others(self) -> dict[int, Inputs]:
        with evaluating(self.net), untouched_random():
            return free_sizes(self.net, self.example)

    @cached_property
    def one_for_both(self) -> bool:
        """Does the network do the same in both modes, so that one capture will do?"""
        return same_in_both_modes(self.net, self.example)

    def _make(self, mode: bool, dtype: torch.dtype) -> tuple[Captured, Interpretation]:
        net, example = self.net, self.example
        norms = (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        if mode and any(norm.momentum is None and norm.running_mean is not None for norm in norms):
            raise GraphFormError("a BatchNorm without momentum averages with its step count, which has no graph")
        if mode != net.training:
            net = copy.deepcopy(net).train(mode)
        if dtype != self.dtype:
            net = in_type(copy.deepcopy(net), dtype)
            example = cast(example, dtype)
        captured = self._captured(net, example)
        specs = captured.program.graph_signature.output_specs
        if any(spec.kind != OutputKind.USER_OUTPUT for spec in specs):
            raise GraphFormError("the forward gives new values to buffers or inputs")
        return captured, interpret(net, captured, training=False, free=True, finer=True)

    def _captured(self, net: nn.Module, example: Inputs) -> Captured:
        """With free sizes if it can be, else with a free batch alone."""
        if self.sizes:
            try:
                return capture(net, example, dynamic=True, sizes=self.sizes)
            except CaptureError:  # some code wants numbers; what is free is told with the result
                pass
        return capture(net, example, dynamic=True)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with floating tensors of this type, complex ones of pairs of it."""
    return inputs.map(lambda tensor: as_type(tensor, dtype))


def _dtype(net: nn.Module) -> torch.dtype:
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _names_types(captured: Captured) -> bool:
    """Does any operation name a floating type, so that other types of parameters mean another graph?"""
    leaves = (leaf for node in captured.nodes for leaf in pytree.tree_leaves((node.args, node.kwargs)))
    return any(isinstance(leaf, torch.dtype) and leaf.is_floating_point for leaf in leaves)


def graph_form(
    small: nn.Module, captures: Captures, keeps: Keeps, modes: tuple[bool, ...] = (False, True)
) -> tuple[GraphNet, str]:
    """The captured network with the parameters of `small`, and the first size in it that had to change.

    small: a copy of the network, in any floating type, after the plan. modes: train, eval or both; only that of the
    captured network has to be possible. Raises `GraphFormError` when it cannot be captured with any batch size, or
    holds what is not understood.
    """
    scripts: dict[bool, Script | Refusal] = dict.fromkeys((False, True), Refusal("it was not asked for"))
    changed = ""
    own = captures.net.training
    written: dict[int, tuple[Script, str]] = {}
    for mode in sorted(modes, key=lambda mode: mode != own):
        try:
            captured, found = captures.of(mode, _dtype(small))
            if id(captured) not in written:  # one may serve both modes
                written[id(captured)] = _script(captured, found, small, keeps)
            scripts[mode], size = written[id(captured)]
            changed = changed or size
        except (CaptureError, GraphFormError, RewriteError) as error:
            if mode == own or len(modes) == 1:
                raise GraphFormError(str(error)) from error
            scripts[mode] = Refusal(str(error))
    once = not isinstance(captures.net, GraphNet)
    recipe = Recipe(keeps.masks, as_shapes(as_nested(captures.example)), captures.sizes) if once else None
    return GraphNet(small, scripts, _argument_names(captures), recipe), changed


def _argument_names(captures: Captures) -> tuple[str, ...]:
    """The names of the positional arguments of the network's forward; one for each of `*args`."""
    names: list[str] = []
    for one in inspect.signature(captures.net.forward).parameters.values():
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD):
            names.append(one.name)
        elif one.kind == one.VAR_POSITIONAL:
            names += [f"{one.name}_{i}" for i in range(len(captures.example.args) - len(names))]
    return tuple(names)


def _script(captured: Captured, analysis: Interpretation, small: nn.Module, keeps: Keeps) -> tuple[Script, str]:
    program = captured.program
    shapes, guards = taken([n.meta.get("val") for n in captured.nodes if _is_input(n, captured)], program)
    if not any(isinstance(shape, tuple) and shape and isinstance(shape[0], str) for shape in shapes):
        raise GraphFormError("its batch size becomes a number in the forward (len(x) does that; take x.shape[0])")
    graph = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, twins))
    changed = rewrite(analysis, keeps.ids(analysis), lambda node: twins[node])
    for name, value in captured.constants.items():
        if not hasattr(small, f"_constant_{name}"):
            small.register_buffer(f"_constant_{name}", value.detach().clone(), persistent=False)
    _attributes(graph, captured)
    _new_parameters(graph, analysis, small, twins)
    _clean(graph)
    _follow(graph, small)
    code = graph.python_code("self")
    if unknown := sorted(code.globals.keys() - NAMES.keys()):
        raise GraphFormError(f"its graph calls {', '.join(unknown)}")
    spec = program.call_spec
    assert spec.in_spec is not None
    assert spec.out_spec is not None
    return Script(code.src, shapes, guards, spec.in_spec, spec.out_spec), changed


def _is_input(node: fx.Node, captured: Captured) -> bool:
    return node.op == "placeholder" and node.name not in captured.tensors and node.name not in captured.constants


def _attributes(graph: fx.Graph, captured: Captured) -> None:
    """Parameters, buffers and constants as attributes instead of arguments."""
    for node in list(graph.nodes):
        if node.op == "get_attr":
            raise GraphFormError(f"it holds a nested graph ({node.target})")
        if node.op != "placeholder" or not (node.name in captured.tensors or node.name in captured.constants):
            continue
        target = captured.tensors.get(node.name, f"_constant_{node.name}")
        with graph.inserting_before(node):
            new = graph.create_node("get_attr", target)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _new_parameters(graph: fx.Graph, analysis: Interpretation, small: nn.Module, twins: dict[fx.Node, fx.Node]) -> None:
    """Biases that folds made, and columns that linear layers go on reading."""
    for site in analysis.sites:
        if full_name(site.name, "weight") in analysis.aliases or site.lookup or isinstance(site.module, Recurrence):
            continue
        node, module = twins[site.node], small.get_submodule(site.name)
        takes = not is_a(site.module, "addmm")
        if takes and getattr(module, "bias", None) is not None and argument(node, 2, "bias") is None:
            with graph.inserting_before(node):
                bias = graph.create_node("get_attr", full_name(site.name, "bias"))
            node.args = (*node.args[:2], bias, *node.args[3:])
        if isinstance(module, SelectLinear) and not isinstance(site.module, SelectLinear):
            with graph.inserting_before(node):
                reads = graph.create_node("get_attr", full_name(site.name, "reads"))
                taken = graph.call_function(torch.ops.aten.index_select.default, (node.args[0], -1, reads))
            node.update_arg(0, taken)


def _clean(graph: fx.Graph) -> None:
    """Drop checks of the capture and results that nothing uses."""
    for node in reversed(list(graph.nodes)):
        name = packet(node.target)
        if name.startswith(("_assert", "sym_constrain")) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _follow(graph: fx.Graph, net: nn.Module) -> None:
    """Tensors made in the forward are made where the parameters are; those of their type, in their type."""
    first = next((n for n in net.named_parameters() if n[1].is_floating_point()), None)
    if first is None:
        return
    name, parameter = first
    start = next(iter(graph.nodes))
    with graph.inserting_before(start):
        held = graph.create_node("get_attr", name)
        device = graph.call_function(getattr, (held, "device"))
        dtype = graph.call_function(getattr, (held, "dtype"))
    swap = {parameter.device: device, parameter.dtype: dtype}

    def replaced(leaf: object) -> object:
        return swap.get(leaf, leaf) if isinstance(leaf, torch.device | torch.dtype) else leaf

    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is not getattr:
            node.args, node.kwargs = pytree.tree_map(replaced, (node.args, node.kwargs))
    for node in (dtype, device, held):
        if not node.users:
            graph.erase_node(node)
