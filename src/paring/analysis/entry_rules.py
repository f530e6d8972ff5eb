"""Rules for operations on the entries of one tensor, or of two: moves, joins, casts, pointwise functions, pools, paddings.

A rule may assume nothing about its inputs: when they are not what it understands, it calls the barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis import ops
from paring.analysis.attention_rules import choose, mask_copies
from paring.analysis.entrywise import met_labels
from paring.analysis.feature_norms import noisy, note_mean
from paring.analysis.found import found
from paring.analysis.free_rules import joined, moved
from paring.analysis.grids import Contraction
from paring.analysis.interpreter import Interpreter, Rule
from paring.analysis.labels import along, distinct, spread, uniform, varying
from paring.analysis.loose import shrinks
from paring.analysis.memory import base_name, is_inplace
from paring.analysis.repeats import carries, cat, once, unlabelled
from paring.analysis.response_norms import note_response
from paring.analysis.state import State, blank, known, packet, place

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def _labels(state: State) -> Tensor:
    return state.labels


def _value(state: State) -> Tensor:
    return state.value


def _stored(state: State) -> Tensor:
    return once(state.value)


def _run(run: Interpreter, node: fx.Node, part: Callable[[State], Tensor]) -> Tensor:
    """Execute the operation itself, out of place, on this part of its arguments."""
    args, kwargs = pytree.tree_map(
        lambda v: part(v) if isinstance(v, State) else v, run.states((node.args, node.kwargs))
    )
    call = node.target
    name = packet(call)
    if is_inplace(name):
        others = [v.shape for v in args[1:] if isinstance(v, Tensor)] if part is _stored else []
        args = (args[0].expand(torch.broadcast_shapes(args[0].shape, *others)).clone(), *args[1:])
    kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "dtype", "layout", "pin_memory")}
    if call in _VIEWS:
        call = torch.ops.aten.reshape.default  # strides of labels and values are not those of the activation
    assert callable(call)
    result: Tensor = call(*args, **kwargs)
    return result


def _masked(value: Tensor, dynamic: Tensor) -> Tensor:
    """NaN where the input was dynamic, whatever the operation makes of NaN."""
    return value.masked_fill(dynamic, torch.nan)


def fixed_move(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """A move whose sizes stay: units that it spreads over several dimensions, or cuts, stay too."""
    labels, values = _moved(run, node, name, first)
    before = distinct(first.labels) if name in ops.CUTS else None
    for out in labels if isinstance(labels, list | tuple) else [labels]:
        if len(varying(out)) > 1:
            run.held_back = True
            run.keep(out, f"spread over several dimensions by {name} in {place(node)}")
        if before is not None and not torch.equal(distinct(out), before):
            run.held_back = True
            run.keep(first.labels, f"cut at a fixed position by {name} in {place(node)}")
    return _paired(labels, values)


def free_move(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """A move whose sizes follow the units."""
    labels, values = _moved(run, node, name, first)
    outs = list(labels) if isinstance(labels, list | tuple) else [labels]
    if not carries(first.labels) and (dim := mask_copies(node)) is not None:
        size = outs[0].shape[dim]
        labels = outs[0] = spread(run.new_units(f"{node.name}: copies", size), tuple(outs[0].shape), dim)
    moved(run, node, name, first, outs)
    return _paired(labels, values)


def _moved(run: Interpreter, node: fx.Node, name: str, first: State) -> tuple[Any, Any]:
    """Labels and values after the move, a tensor each or a list of tensors each."""
    if name in ("contiguous", "clone") and node not in run.shared:
        return first.labels, first.value
    return _run(run, node, _labels), _run(run, node, _value)


def _paired(labels: Any, values: Any) -> object:
    if isinstance(labels, list | tuple):
        return [State(a, b) for a, b in zip(labels, values, strict=True)]
    return State(labels, values)


def fixed_cat(run: Interpreter, node: fx.Node) -> object:
    """Tensors joined along a dimension."""
    parts = _parts(run, node)
    return run.barrier(node) if parts is None else _cat(run, node, *parts)


def free_cat(run: Interpreter, node: fx.Node) -> object:
    """Tensors joined along a dimension; their units may lie along several."""
    parts = _parts(run, node)
    if parts is None:
        return run.barrier(node)
    if any(len(varying(state.labels)) > 1 for state in parts[0]):
        return joined(run, node, base_name(node), *parts) or run.barrier(node)
    return _cat(run, node, *parts)


def _parts(run: Interpreter, node: fx.Node) -> tuple[list[State], int] | None:
    """What is joined, and along which dimension."""
    parts = run.states(node.args[0])
    if not isinstance(parts, list | tuple) or not all(isinstance(p, State) for p in parts):
        return None
    dim = run.values(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))
    states = [p for p in parts if isinstance(p, State)]
    if base_name(node) == "stack":
        states = [State(p.labels.unsqueeze(dim), p.value.unsqueeze(dim)) for p in states]
    states = [p for p in states if p.value.numel()] or states[:1]  # empty ones join nothing
    return (states, dim % max(states[0].labels.dim(), 1)) if states else None


def _cat(run: Interpreter, node: fx.Node, states: list[State], dim: int) -> object:
    ways = [set(varying(p.labels)) for p in states]
    if any(way - {dim} for way in ways):  # units lie across the joint: they have to shrink together
        if any(dim in way for way in ways):
            return run.barrier(node)
        units = next(p.labels for p in states if carries(p.labels))
        labels = [
            units.narrow(dim, 0, 1).expand_as(p.labels) if shrinks(run, node, p, units) else p.labels for p in states
        ]
        for other in labels[1:]:
            run.couple(labels[0].narrow(dim, 0, 1), other.narrow(dim, 0, 1), f"coupled by {base_name(node)}")
    else:
        labels = [p.labels for p in states]
    return State(cat(labels, dim), cat([p.value for p in states], dim))


def fixed_pairwise(run: Interpreter, node: fx.Node, name: str, a: State) -> object:
    """Two operands entry by entry: units that meet belong together."""
    b, value, left, right = _operands(run, node, name, a)
    return State(met_labels(run, node, ops.PAIRWISE[name], a, b, left, right, free=False), value)


def free_pairwise(run: Interpreter, node: fx.Node, name: str, a: State) -> object:
    """The same; one operand may be broadcast along units of the other."""
    b, value, left, right = _operands(run, node, name, a)
    return State(met_labels(run, node, ops.PAIRWISE[name], a, b, left, right, free=True), value)


def _operands(run: Interpreter, node: fx.Node, name: str, a: State) -> tuple[State, Tensor, Tensor, Tensor]:
    """The second operand, the result's value, and the labels of both expanded to its shape."""
    second = run.states(node.args[1])
    b = second if isinstance(second, State) else known(torch.tensor(second, dtype=torch.float64))
    assert isinstance(b, State)
    value = _run(run, node, _stored)
    if name == "mul":
        value = value.masked_fill((once(a.value) == 0) | (once(b.value) == 0), 0.0)
    elif name == "div" and node.args[1] in run.positive:
        value = value.masked_fill(once(a.value) == 0, 0.0)
    shape = torch.broadcast_shapes(a.value.shape, b.value.shape)
    return b, value.expand(shape), a.labels.expand(shape), b.labels.expand(shape)


def cast(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """A cast between floating types leaves values alone; others are tried."""
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or not result.dtype.is_floating_point:
        return found(run, node)
    return State(first.labels, first.value, first.sums)


def dropout(run: Interpreter, node: fx.Node, name: str, first: State) -> State:
    """A dropout: where it is on, what is not zero depends on its noise."""
    active = noisy(run, node)
    value = once(first.value)
    if active:
        keeps = (value == 0) if "alpha" not in name else torch.zeros_like(value, dtype=torch.bool)
        value = value.masked_fill(~keeps, torch.nan)
    return State(first.labels, value.expand(first.value.shape), None if active else first.sums)


def reduce(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """A mean, a sum, an extreme over dimensions along which no units lie, or whole beside others; a sum may go over units."""
    dims = run.values(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"))
    listed = [dims] if isinstance(dims, int) else list(dims or range(first.labels.dim()))
    over = {d % first.labels.dim() for d in listed if first.labels.dim()}
    lying = varying(first.labels)
    if name == "sum" and len(lying) == 1 and lying[0] in over:
        return _sum(run, node, first, lying[0])
    if over & set(lying):
        if set(lying) <= over:
            last = over == {first.labels.dim() - 1}
            known_mean = name == "mean" and (
                (last and note_mean(run, node, first)) or (len(over) == 1 and note_response(run, node, first, lying[0]))
            )
            if known_mean:
                value = _run(run, node, _value)
                return State(unlabelled(value.shape), value)
            return run.barrier(node)
        run.pin(first.labels, over, f"read by {name} in {place(node)}")
    value = _run(run, node, _value)
    labels = first.labels
    for d in sorted(over, reverse=True):
        labels = labels.narrow(d, 0, 1)
    return State(labels.reshape(value.shape), value)


def _sum(run: Interpreter, node: fx.Node, first: State, dim: int) -> object:
    """A sum over units reads all of them but zeros."""
    units, constants = along(first.labels, dim), uniform(first.value, dim)
    if units is None:
        return run.barrier(node)
    zero = (constants == 0)[None]
    run.contractions.append(
        Contraction(node, torch.tensor([-1]), units[None], constants[None], torch.ones_like(zero), zero)
    )
    value = _run(run, node, _value)
    return State(unlabelled(value.shape), value)


def pool(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """Pooling and resizing, channel by channel."""
    spatial = next(int(c) for c in name if c.isdigit())
    channel = first.labels.dim() - spatial - 1
    units = run.lines(first.labels, channel)
    if units is None:
        return run.barrier(node)
    places = range(channel + 1, channel + 1 + spatial)
    result = _run(run, node, lambda state: once(state.value, *places))  # positions count: padding is among them
    value = result[0] if isinstance(result, tuple | list) else result
    dynamic = once(first.value, channel).isnan().movedim(channel, 0).flatten(1).any(1)
    value = torch.where(dynamic.view(-1, *[1] * spatial), torch.nan, value)
    shape = (*first.value.shape[: channel + 1], *value.shape[channel + 1 :])
    state = State(spread(units, shape, channel), value.expand(shape))
    return (state, blank(shape)) if isinstance(result, tuple | list) else state


def pad(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """Padding of positions; extra channels beside the units carry none."""
    value = _run(run, node, _value)
    grown = [d for d in range(value.dim()) if value.shape[d] != first.value.shape[d]]
    lies = varying(first.labels)
    if not lies:
        units = first.labels.flatten()[:1] if first.labels.numel() else None
        if units is None or int(units) >= 0:
            return run.barrier(node)
        return State(unlabelled(value.shape), value)
    if set(grown) & set(lies):
        return _pad_units(run, node, first, value)
    labels = first.labels
    for d in grown:
        labels = labels.narrow(d, 0, 1)
    return State(labels.expand(value.shape), value)


def _pad_units(run: Interpreter, node: fx.Node, first: State, value: Tensor) -> object:
    """Extra channels of a fixed number beside the units: they carry no unit."""
    if packet(node.target) not in ("pad", "constant_pad_nd"):
        return run.barrier(node)
    widths = run.values(node.args[1])
    if any(w < 0 for w in widths) or "constant" not in [*node.args[2:3], "constant"][:1]:
        return run.barrier(node)
    labels = torch.nn.functional.pad(first.labels, widths, value=-1)
    for d in range(labels.dim()):
        if d not in varying(first.labels) and labels.shape[d] != first.labels.shape[d]:
            return run.barrier(node)
    return State(labels, value)


def pointwise(run: Interpreter, node: fx.Node, name: str, first: State) -> State:
    """A function of each entry alone."""
    value = _masked(_run(run, node, _stored), once(first.value).isnan())
    return State(first.labels, value.expand(first.value.shape))


def like(run: Interpreter, node: fx.Node, name: str, first: State) -> State:
    """A tensor made of nothing but the shape of another: of all of it, so that it shrinks alike, or of numbers."""
    made = known(_run(run, node, _value))
    return State(first.labels, made.value) if name.endswith("_like") else made


def copied(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """`copy_`: the entries of the second tensor."""
    tensors = _tensors(run, node)
    if len(tensors) != 2:
        return run.barrier(node)
    source = tensors[1]
    return State(source.labels.expand_as(first.labels), source.value.expand_as(first.value))


def masked_fill(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """`masked_fill`: a mask, and a number or a tensor."""
    return choose(run, node, name) if len(_tensors(run, node)) > 1 else found(run, node)


def chosen(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """`where`."""
    return choose(run, node, name)


_Moving = Callable[["Interpreter", fx.Node, str, State], object]


def _tensors(run: Interpreter, node: fx.Node) -> list[State]:
    return [v for v in pytree.tree_leaves(run.states((node.args, node.kwargs))) if isinstance(v, State)]


def first_operand(rule: _Moving, *, least: int = 1) -> Rule:
    """A rule for operations whose first argument is a tensor, with at least so many arguments; else the barrier."""

    def guarded(run: Interpreter, node: fx.Node) -> object:
        first = run.states(node.args[0]) if len(node.args) >= least else None
        if not isinstance(first, State) or node.target is torch.ops.aten.view.dtype:
            return run.barrier(node)
        return rule(run, node, base_name(node), first)

    return guarded


def one_operand(rule: _Moving) -> Rule:
    """A rule for operations on one tensor; its name may end in `_as`, whose second tensor gives the shape only."""

    def guarded(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
        if len(_tensors(run, node)) != 1 and not name.endswith("_as"):
            return found(run, node)
        return rule(run, node, name, first)

    return first_operand(guarded)
