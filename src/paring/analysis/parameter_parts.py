"""Parts of one parameter that are used apart, such as the rows of `in_proj_weight` in cross-attention.

A split, chunk or slice of a parameter along its first dimension gives `Ref`s again, each with the row that it begins at,
as long as all uses of the parameter are such parts and no two of them overlap. Each part then is a linear map of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis import ops
from paring.analysis.grids import layout
from paring.analysis.interpreter import Rule
from paring.analysis.memory import base_name
from paring.analysis.state import Ref

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def or_parts(rule: Rule) -> Rule:
    """The rule of a cut, or the parts where a parameter is cut."""

    def cut(run: Interpreter, node: fx.Node) -> object:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.op == "placeholder" and isinstance(run.values(source), Ref):
            made = _parts(run, node, source)
            if made is not None:
                return made
        return rule(run, node)

    return cut


def _parts(run: Interpreter, node: fx.Node, source: fx.Node) -> object:
    held = run.values(source)
    taken = torch.zeros(len(held.tensor), dtype=torch.int64)
    for user in source.users:
        rows = _rows(run, user, held.tensor)
        if rows is None:
            return None
        for one in rows:
            taken[one] += 1
    if bool((taken > 1).any()):
        return None
    starts = [int(rows[0]) for rows in _rows(run, node, held.tensor) or []]
    args: Any
    args, kwargs = run.values((node.args[1:], node.kwargs))
    made, spec = pytree.tree_flatten(node.target(held.tensor, *args, **kwargs))  # type: ignore[operator]
    refs = [Ref(held.name, part, None, start) for part, start in zip(made, starts, strict=True)]
    found: object = pytree.tree_unflatten(refs, spec)
    run.parts[node] = refs
    return found


def _rows(run: Interpreter, node: fx.Node, tensor: Tensor) -> list[Tensor] | None:
    """The rows in each result of a cut; None where it is no cut into ranges of rows."""
    if base_name(node) not in ops.CUTS or len(tensor) == 0:
        return None
    args: Any
    args, kwargs = run.values((node.args[1:], node.kwargs))
    number = torch.arange(len(tensor)).view(-1, *[1] * (tensor.dim() - 1)).expand(tensor.shape)
    found = []
    for part in pytree.tree_leaves(node.target(number, *args, **kwargs)):  # type: ignore[operator]
        if part.shape[1:] != tensor.shape[1:] or part.dim() != tensor.dim() or len(part) == 0:
            return None
        rows = part.flatten(1)[:, 0] if part.dim() > 1 else part
        if not torch.equal(rows, torch.arange(int(rows[0]), int(rows[0]) + len(rows))):
            return None
        found.append(rows)
    return found


def note_parts(run: Interpreter, held: Ref, node: object, units: Tensor) -> None:
    """Where the units lie in a parameter and in the parts that it is cut into, so that sizes of the cut can follow."""
    assert isinstance(node, fx.Node)
    cut = node if node in run.parts else node.args[0]
    assert isinstance(cut, fx.Node)
    source = cut.args[0]
    assert isinstance(source, fx.Node)
    whole = run.values(source)
    labels = run.part_labels.setdefault(source, torch.full((len(whole.tensor),), -1))
    labels[held.start : held.start + len(units)] = units
    run.note_layouts(source, [layout(_spread(labels, whole))])
    run.note_layouts(cut, [layout(_spread(labels, part)) for part in run.parts[cut]])


def _spread(labels: Tensor, part: Ref) -> Tensor:
    rows = labels[part.start : part.start + len(part.tensor)]
    return rows.view(-1, *[1] * (part.tensor.dim() - 1)).expand(part.tensor.shape)
