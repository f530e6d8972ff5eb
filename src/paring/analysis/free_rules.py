"""Rules for units that lie along several dimensions, are cut at a position, or belong to loose parameters.

They hold where sizes in the forward may change with the widths (`FREE` in `rules`): every size that a view, a split or
a slice writes down becomes the number of units that stay. A view of units as rows of units asks that all rows that live
keep the same number; a cut that no part becomes empty; moves back into one dimension that the order is the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from paring.analysis import ops
from paring.analysis.contractions import fixed_product, matmul, product
from paring.analysis.grids import Contraction, grid_dims, rectangle, slices
from paring.analysis.labels import along, varying
from paring.analysis.layer_rules import matrix
from paring.analysis.projection import linear_site
from paring.analysis.repeats import carries, cat, once, shortened
from paring.analysis.state import Ref, State, place

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def moved(run: Interpreter, node: fx.Node, name: str, first: State, outs: list[Tensor]) -> None:
    """What a move asks of the units that it carries."""
    lying = varying(first.labels)
    if name in ops.CUTS and not all(torch.equal(out, first.labels) for out in outs):
        _cut(run, node, name, first.labels, outs)
        return
    for out in outs:
        ways = varying(out)
        if len(ways) > 1 and len(lying) == 1:
            row = along(first.labels, lying[0])
            if row is None or bool((row < 0).any()) or bool((row.diff() <= 0).any()):
                run.keep(out, f"spread over several dimensions by {name} in {place(node)}")
                continue
        elif name in ops.RESHAPES and len(ways) > 1 and _regrouped(run, first.labels, out):
            run.keep(out, f"put in other rows by {name} in {place(node)}")
            continue
        if len(ways) > 1:
            run.grid(out)
        if len(ways) < len(lying) and any(bool((_line(out, d).diff() < 0).any()) for d in ways):
            run.grid(first.labels, regular=True)


def _regrouped(run: Interpreter, labels: Tensor, out: Tensor) -> bool:
    """Do other units share rows now, and did they not lie in the order in which they were made? Those that go together are one."""
    return _other_rows(labels, out) and _other_rows(run.together(labels), run.together(out))


def _other_rows(labels: Tensor, out: Tensor) -> bool:
    before, after = (torch.unique(b.reshape(-1, b.shape[-1]), dim=0) for b in (_box(labels), _box(out)))
    return not torch.equal(before, after) and bool((rectangle(labels, varying(labels)).flatten().diff() < 0).any())


def _box(labels: Tensor) -> Tensor:
    return rectangle(labels, grid_dims(labels))


def _line(labels: Tensor, dim: int) -> Tensor:
    for d in {*range(labels.dim())} - {dim}:
        labels = labels.narrow(d, 0, 1)
    return labels.flatten()


def _cut(run: Interpreter, node: fx.Node, name: str, labels: Tensor, outs: list[Tensor]) -> None:
    lying = varying(labels)
    dim, step = _where(run, node, name)
    dim %= labels.dim()
    if dim not in lying:
        return
    if step != 1 and not _together(run, node, labels, dim, step):
        run.pin(labels, {dim}, f"every {step}th entry is taken by {name} in {place(node)}")
    outer = [d for d in grid_dims(labels) if d != dim]
    outer = outer[: grid_dims(labels).index(dim)]
    for out in outs:
        if not out.numel():  # what a rotation of all positions leaves over
            continue
        if not varying(out):
            run.keep(out, f"taken alone by {name} in {place(node)}")
        run.grid(out)
        if outer and out.dim() == labels.dim():
            run.tie_slices([(labels, outer), (out, outer)])
        elif outer:
            run.tie_slices([(labels, outer), (out, [d - (d > dim) for d in outer])])


def _together(run: Interpreter, node: fx.Node, labels: Tensor, dim: int, step: int) -> bool:
    """Let units go in stretches of as many as a step is wide, so that the same is taken of those that stay; False where they cannot."""
    line, (start, stop) = along(labels, dim), run.values((node.args[2], node.args[3]))
    if line is None or len(line) % step or not 0 <= start < step or stop < len(line):
        return False
    rows = line.view(-1, step)
    run.couple(rows[:, :1].expand_as(rows).contiguous(), rows, f"taken in turns in {place(node)}")
    return True


def _where(run: Interpreter, node: fx.Node, name: str) -> tuple[int, int]:
    """Dimension and step of a cut."""
    position = 1 if name in ("narrow", "slice", "select", "unbind") else 2
    dim = run.values(node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0))
    step = run.values(node.args[4] if name == "slice" and len(node.args) > 4 else node.kwargs.get("step", 1))
    return int(dim), int(step)


def joined(run: Interpreter, node: fx.Node, name: str, states: list[State], dim: int) -> State | None:
    """Units along several dimensions, put one behind the other along the innermost or along a new one."""
    lying = {d for s in states for d in varying(s.labels)}
    if any(bool((once(s.labels) < 0).any()) for s in states):
        return None
    if dim in lying:
        outer = sorted(lying - {dim})
        if len({tuple(s.labels.shape[d] for d in outer) for s in states}) != 1:
            return None
        run.tie_slices([(s.labels, outer) for s in states])
        for state in states:  # an order that shrinking would have to keep: rows stay whole
            run.pin(state.labels, {dim}, f"joined with other units by {name} in {place(node)}")
        rows = [slices(s.labels, outer)[:, :1] for s in states]
        for other in rows[1:]:
            run.couple(rows[0], other, f"joined by {name} in {place(node)}")
    else:
        heads = [s.labels.narrow(dim, 0, 1) for s in states]
        for other in heads[1:]:
            run.couple(heads[0], other, f"coupled by {name}")
    return State(cat([s.labels for s in states], dim), cat([s.value for s in states], dim))


def meeting(run: Interpreter, node: fx.Node, a: State, b: State, left: Tensor, right: Tensor) -> Tensor | None:
    """Labels where two operands meet entry by entry and one is broadcast along units of the other; else None."""
    ways_a, ways_b = set(varying(left)), set(varying(right))
    if not ways_a and not ways_b:
        return None
    spans_a, spans_b = _spans(a, left), _spans(b, right)
    reason = f"meets a tensor that cannot shrink in {place(node)}"
    bare_a, bare_b = not carries(a.labels), not carries(b.labels)
    if bare_a or bare_b:
        full, spanned = (right, spans_a) if bare_a else (left, spans_b)
        if len(varying(full)) == 1 and varying(full)[0] in spanned:
            return None
        run.pin(full, spanned, reason)
        return full
    if bool((once(left) < 0).any()) or bool((once(right) < 0).any()) or ways_a == ways_b:
        return None
    (small, few), (large, many) = sorted([(left, ways_a), (right, ways_b)], key=lambda pair: len(pair[1]))
    if not few or not few < many:
        return None
    if (spans_a if small is left else spans_b) - few & many:
        return None
    dims = sorted(few)
    run.tie_slices([(small, dims), (large, dims)])
    seen = torch.unique(torch.stack([part.flatten() for part in shortened(large, small)]), dim=1)
    used = torch.ones(seen.shape[1], 1, dtype=torch.bool)
    dynamic = torch.full((seen.shape[1], 1), torch.nan, dtype=torch.float64)
    run.contractions.append(Contraction(node, seen[0], seen[1][:, None], dynamic, used, ~used))
    return large


def _spans(state: State, full: Tensor) -> set[int]:
    shift = full.dim() - state.labels.dim()
    return {d for d in range(full.dim()) if d >= shift and state.labels.shape[d - shift] > 1}


def addmm(run: Interpreter, node: fx.Node) -> object:
    """X W + b with a parameter W of (inputs, outputs) that stays as it is; without a parameter a product of activations."""
    bias, x, weight = (None, *node.args[:2]) if len(node.args) == 2 else node.args[:3]
    plain = _plain(run, node)
    if plain and (layer := matrix(run, node, x, weight, bias)) is not None:
        return layer
    run.held_back |= plain
    return matmul(run, node, fixed_product) if len(node.args) == 2 else run.barrier(node)


def free_addmm(run: Interpreter, node: fx.Node) -> object:
    """X W + b with a parameter W of (inputs, outputs); without a parameter a product of activations."""
    bias, x, weight = (None, *node.args[:2]) if len(node.args) == 2 else node.args[:3]
    held, shift = run.values(weight), run.values(bias)
    if _plain(run, node) and (layer := matrix(run, node, x, weight, bias)) is not None:
        return layer
    if _plain(run, node) and isinstance(held, Ref) and (shift is None or isinstance(shift, Ref)):
        return linear_site(run, node, x, held, shift, swapped=True)
    return matmul(run, node, product) if len(node.args) == 2 else run.barrier(node)


def _plain(run: Interpreter, node: fx.Node) -> bool:
    """Is it without factors?"""
    factors: tuple[object, object] = run.values((node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)))
    return factors == (1, 1)
