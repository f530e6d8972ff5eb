"""How each kind of operation moves labels and values; `apply_rule` picks the rule by the operation's name.

A rule may assume nothing about its inputs: when they are not what it understands, it calls the barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis import ops
from paring.analysis.attention_rules import attention, choose, mask_copies, softmax
from paring.analysis.contractions import baddbmm, einsum, matmul
from paring.analysis.free_rules import addmm, joined, meeting, moved
from paring.analysis.grids import Meeting
from paring.analysis.labels import along, distinct, spread, uniform, varying
from paring.analysis.layer_rules import conv, conv_transpose, embedding
from paring.analysis.memory import is_inplace
from paring.analysis.norm_rules import batch_norm, group_norm, instance_norm, layer_norm, prelu, rms_norm
from paring.analysis.projection import linear
from paring.analysis.repeats import carries, cat, either, once, unlabelled
from paring.analysis.shuffle_rules import channel_shuffle, glu, pixel_shuffle, rrelu
from paring.analysis.state import State, blank, known, packet, place

if TYPE_CHECKING:
    from paring.analysis.interpret import Interpreter


LAYERS = {
    "linear": linear,
    "conv1d": conv,
    "conv2d": conv,
    "conv3d": conv,
    "embedding": embedding,
    "conv_transpose1d": conv_transpose,
    "conv_transpose2d": conv_transpose,
    "conv_transpose3d": conv_transpose,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "prelu": prelu,
    "rrelu": rrelu,
    "glu": glu,
    "pixel_shuffle": pixel_shuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "scaled_dot_product_attention": attention,
    "matmul": matmul,
    "bmm": matmul,
    "baddbmm": baddbmm,
    "einsum": einsum,
    "addmm": addmm,
    "mm": addmm,
}


def dead_nodes(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Results that nothing uses, layers left out."""
    dead: set[fx.Node] = set()
    for node in reversed(list(nodes)):
        name = packet(node.target)
        pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        idle = all(user in dead for user in node.users) and not name.startswith(("_assert", "sym_constrain"))
        if idle and node.op == "call_function" and (pure or name == "getitem") and name not in LAYERS:
            dead.add(node)
    return dead


def _unknown_number() -> type[Exception]:
    """What torch raises where a traced number has to be known; imported late, because it brings all of sympy."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return GuardOnDataDependentSymNode


def apply_rule(run: Interpreter, node: fx.Node, name: str) -> object:
    """The result of a node that has tensor arguments. In-place operations also write into their first argument."""
    inplace = is_inplace(name)
    try:
        result = _pure(run, node, name.rstrip("_") if inplace else name)
    except _unknown_number():  # a number that a tensor was turned into
        result = run.barrier(node)
    target = run.values(node.args[0]) if inplace and node.args else None
    if isinstance(target, State) and isinstance(result, State):
        if node in run.shared and target.value.shape == result.value.shape:
            target.labels.copy_(result.labels)
            target.value.copy_(result.value)
        else:  # nothing else holds this memory, or it is transpose_ and the like
            target.labels, target.value = result.labels, result.value
        return target
    return result


def _pure(run: Interpreter, node: fx.Node, name: str) -> object:
    if name in LAYERS:
        return LAYERS[name](run, node)
    if name in ops.JOINS:
        return _cat(run, node, name)
    tensors = [v for v in pytree.tree_leaves(run.states((node.args, node.kwargs))) if isinstance(v, State)]
    first = run.states(node.args[0]) if node.args else None
    if not isinstance(first, State):
        return run.barrier(node)
    if node.target is torch.ops.aten.view.dtype:
        return run.barrier(node)
    if name in ops.PAIRWISE and len(node.args) > 1:
        return _pairwise(run, node, name, first)
    if name == "copy" and len(tensors) == 2:
        source = tensors[1]
        return State(source.labels.expand_as(first.labels), source.value.expand_as(first.value))
    if name == "where" or (name == "masked_fill" and len(tensors) > 1):
        return choose(run, node, name)
    if name in ops.MOVES and (len(tensors) == 1 or name.endswith("_as")):
        return _move(run, node, name, first)
    if name in ops.CASTS:
        return _cast(run, node, first)
    if len(tensors) == 1:
        if name in ops.POINTWISE:
            value = _masked(_run(run, node, _stored), once(first.value).isnan())
            return State(first.labels, value.expand(first.value.shape))
        if name in ops.DROPOUTS:
            return _dropout(run, node, name, first)
        if name in ops.LIKE:
            return known(_run(run, node, _value))
        if name in ops.REDUCTIONS:
            return _reduce(run, node, name, first)
        if name in ops.SOFTMAXES:
            return softmax(run, node, first)
        if name in ops.POOLS:
            return _pool(run, node, name, first)
        if name in ops.PADS:
            return _pad(run, node, first)
    return run.barrier(node)


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


def _move(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    if name in ("contiguous", "clone") and node not in run.shared:
        labels, values = first.labels, first.value
    else:
        labels, values = _run(run, node, _labels), _run(run, node, _value)
    before = distinct(first.labels) if name in ops.CUTS else None
    outs = list(labels) if isinstance(labels, list | tuple) else [labels]
    if run.free:
        if not carries(first.labels) and (dim := mask_copies(node)) is not None:
            size = outs[0].shape[dim]
            labels = outs[0] = spread(run.new_units(f"{node.name}: copies", size), tuple(outs[0].shape), dim)
        moved(run, node, name, first, outs)
    for out in outs if not run.free else ():
        if len(varying(out)) > 1:
            run.held_back = True
            run.keep(out, f"spread over several dimensions by {name} in {place(node)}")
        if before is not None and not torch.equal(distinct(out), before):
            run.held_back = True
            run.keep(first.labels, f"cut at a fixed position by {name} in {place(node)}")
    if isinstance(labels, list | tuple):
        return [State(a, b) for a, b in zip(labels, values, strict=True)]
    return State(labels, values)


def _cat(run: Interpreter, node: fx.Node, name: str) -> object:
    parts = run.states(node.args[0])
    if not isinstance(parts, list | tuple) or not all(isinstance(p, State) for p in parts):
        return run.barrier(node)
    dim = run.values(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))
    states = [p for p in parts if isinstance(p, State)]
    if name == "stack":
        states = [State(p.labels.unsqueeze(dim), p.value.unsqueeze(dim)) for p in states]
    states = [p for p in states if tuple(p.value.shape) != (0,)]  # these join nothing
    if not states:
        return run.barrier(node)
    dim = dim % states[0].labels.dim()
    ways = [set(varying(p.labels)) for p in states]
    if run.free and any(len(way) > 1 for way in ways):
        return joined(run, node, name, states, dim) or run.barrier(node)
    if any(way - {dim} for way in ways):  # units lie across the joint: they have to shrink together
        if any(dim in way for way in ways):
            return run.barrier(node)
        head = states[0].labels.narrow(dim, 0, 1)
        for other in states[1:]:
            run.couple(head, other.labels.narrow(dim, 0, 1), f"coupled by {name}")
    return State(cat([p.labels for p in states], dim), cat([p.value for p in states], dim))


def _pairwise(run: Interpreter, node: fx.Node, name: str, a: State) -> object:
    second = run.states(node.args[1])
    b = second if isinstance(second, State) else known(torch.tensor(second, dtype=torch.float64))
    assert isinstance(b, State)
    value = _run(run, node, _stored)
    if name == "mul":
        value = value.masked_fill((once(a.value) == 0) | (once(b.value) == 0), 0.0)
    shape = torch.broadcast_shapes(a.value.shape, b.value.shape)
    value = value.expand(shape)
    left, right = a.labels.expand(shape), b.labels.expand(shape)
    if run.free and (met := meeting(run, node, a, b, left, right)) is not None:
        return State(met, value)
    meet = True
    for other, full in ((b, left), (a, right)):
        units = varying(full)
        if any(_size(other.labels, d - full.dim()) == 1 for d in units):  # broadcast over units
            run.keep(other.labels, f"broadcast over other units in {place(node)}")
            meet = False
            labels = full
    if meet:
        reason = ops.PAIRWISE[name]
        if a.value.numel() > 1 and b.value.numel() > 1:
            run.couple(left, right, reason)
        labels = either(left, right)
    return State(labels, value)


def _size(tensor: Tensor, dim: int) -> int:
    """Size along a dimension counted from the end; 1 where there is none."""
    return tensor.shape[dim] if -dim <= tensor.dim() else 1


def _cast(run: Interpreter, node: fx.Node, first: State) -> object:
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or not result.dtype.is_floating_point:
        return run.barrier(node)
    return State(first.labels, first.value, first.sums)


def _dropout(run: Interpreter, node: fx.Node, name: str, first: State) -> State:
    told = node.args[2] if len(node.args) > 2 else node.kwargs.get("train")
    active = run.training or (told is True and not run.net.training)  # a dropout that is on in eval mode
    value = once(first.value)
    if active and node.args[1:2] != (0.0,):
        keeps = (value == 0) if "alpha" not in name else torch.zeros_like(value, dtype=torch.bool)
        value = value.masked_fill(~keeps, torch.nan)
    return State(first.labels, value.expand(first.value.shape), None if active else first.sums)


def _reduce(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    dims = run.values(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"))
    listed = [dims] if isinstance(dims, int) else list(dims or range(first.labels.dim()))
    over = {d % first.labels.dim() for d in listed if first.labels.dim()}
    lying = varying(first.labels)
    if name == "sum" and len(lying) == 1 and lying[0] in over:
        return _sum(run, node, first, lying[0])
    if over & set(lying):
        return run.barrier(node)
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
    run.meetings.append(Meeting(node, torch.tensor([-1]), units[None], constants[None], torch.ones_like(zero), zero))
    value = _run(run, node, _value)
    return State(unlabelled(value.shape), value)


def _pool(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    spatial = next(int(c) for c in name if c.isdigit())
    channel = first.labels.dim() - spatial - 1
    units = along(first.labels, channel)
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


def _pad(run: Interpreter, node: fx.Node, first: State) -> object:
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
