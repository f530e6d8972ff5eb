"""Operations on one or more tensors entry by entry: units that meet belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis.free_rules import meeting
from paring.analysis.labels import distinct, varying
from paring.analysis.loose import shrinks
from paring.analysis.memory import base_name, is_inplace
from paring.analysis.repeats import either, filled, once
from paring.analysis.starts import adopt
from paring.analysis.state import State, packet, place, shape_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def entrywise(run: Interpreter, node: fx.Node, *, free: bool) -> object:
    """The result where torch says that the operation is pointwise; free: one operand may be broadcast along units."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda v: isinstance(v, fx.Node))
    held = [run.states(leaf) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    operands = [one for one in held if isinstance(one, State)]
    made = node.meta["val"]
    shape = torch.broadcast_shapes(*(one.value.shape for one in operands))
    if not isinstance(made, Tensor) or shape != torch.Size(shape_of(made)):
        return run.barrier(node)
    labels, reason = operands[0].labels, f"coupled by {base_name(node)}"
    for other in operands[1:]:
        whole = torch.broadcast_shapes(labels.shape, other.labels.shape)
        sides = labels.expand(whole), other.labels.expand(whole)
        first = State(labels, filled(labels.shape, torch.nan))
        labels = met_labels(run, node, reason, first, other, *sides, free=free)
    return State(labels.expand(shape), _value(node, leaves, held, spec, shape))


def _value(node: fx.Node, leaves: list[Any], held: list[Any], spec: pytree.TreeSpec, shape: torch.Size) -> Tensor:
    """The result where all operands are known."""
    unknown = torch.zeros((), dtype=torch.bool)
    typed: list[object] = []
    for leaf, one in zip(leaves, held, strict=True):
        if isinstance(one, State):
            stored = once(one.value)
            unknown = unknown | stored.isnan()
            dtype = leaf.meta["val"].dtype
            stored = stored.nan_to_num(1.0, posinf=torch.inf, neginf=-torch.inf)
            typed.append(stored if dtype.is_floating_point or dtype.is_complex else stored.to(dtype))
        else:
            typed.append(one)
    if bool(unknown.all()):
        return filled(shape, torch.nan)
    if is_inplace(packet(node.target)):
        typed[0] = typed[0].expand(unknown.shape).clone()  # type: ignore[attr-defined]
    args, kwargs = pytree.tree_unflatten(typed, spec)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "dtype", "layout", "pin_memory")}
    try:
        result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, NotImplementedError):  # made for other types of numbers, complex ones mostly
        return filled(shape, torch.nan)
    if result.is_complex():
        return filled(shape, torch.nan)
    return result.double().masked_fill(unknown, torch.nan).expand(shape)


def met_labels(
    run: Interpreter, node: fx.Node, reason: str, a: State, b: State, left: Tensor, right: Tensor, *, free: bool
) -> Tensor:
    """The labels where a and b meet; left, right: theirs, expanded to one shape."""
    for bare, full in ((b, left), (a, right)):
        if shrinks(run, node, bare, full):
            return full
    if adopt(run, node, b, left) or adopt(run, node, a, right):
        return either(left, right)
    if free and (met := meeting(run, node, a, b, left, right)) is not None:
        return met
    sides = [(b, left), (a, right)]
    over = [side for side in sides if any(_size(side[0].labels, d - left.dim()) == 1 for d in varying(side[1]))]
    if len(over) == 2:  # each is broadcast over the units of the other: the fewer stay
        over = [min(over, key=lambda side: len(distinct(side[0].labels)))]
    for other, full in over:
        run.keep(other.labels, f"broadcast over other units in {place(node)}")
        labels = full
    if not over:
        if a.labels.numel() > 1 and b.labels.numel() > 1:
            run.couple(left, right, reason)
        labels = either(left, right)
    return labels


def _size(tensor: Tensor, dim: int) -> int:
    """Size along a dimension counted from the end; 1 where there is none."""
    return tensor.shape[dim] if -dim <= tensor.dim() else 1
