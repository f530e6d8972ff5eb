"""Sums over places that an index names, as graph networks and experts take them: `zeros.scatter_add(0, index, x)`.

Channels pass through where the index is the same for all of them, and what is added to begins as zeros, or has their units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from paring.analysis.grids import layout
from paring.analysis.labels import along, spread, uniform, varying
from paring.analysis.memory import base_name
from paring.analysis.repeats import carries
from paring.analysis.slicewise import slicewise
from paring.analysis.starts import adopt
from paring.analysis.state import State, shape_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def scatter(run: Interpreter, node: fx.Node) -> object:
    """`scatter_add`, `scatter_reduce`, `index_add`: tensor, dimension, index, what is added."""
    begun, added = (run.states(node.args[at]) if len(node.args) > at else None for at in (0, 3))
    if not isinstance(begun, State) or not isinstance(added, State):
        return run.barrier(node)
    dim, lying = int(run.values(node.args[1])) % max(begun.labels.dim(), 1), varying(added.labels)
    units = along(added.labels, lying[0]) if len(lying) == 1 and lying[0] != dim else None
    if units is None or not _same_for_all(run, node, lying[0]):
        return slicewise(run, node)
    (way,), shape = lying, tuple(begun.value.shape)
    labels = spread(units, shape, way)
    if carries(begun.labels):
        run.couple(begun.labels.narrow(dim, 0, 1), added.labels.narrow(dim, 0, 1), f"coupled by {base_name(node)}")
    elif not adopt(run, node, begun, labels):
        return run.barrier(node)
    zero = (uniform(added.value, way) == 0) & (uniform(begun.value, way) == 0)
    return State(labels.clone(), spread(torch.where(zero, 0.0, torch.nan).double(), shape, way).clone())


def _same_for_all(run: Interpreter, node: fx.Node, way: int) -> bool:
    """Whether the index has one place for all units along this dimension; a size that it was expanded to will follow."""
    index = node.args[2]
    if not isinstance(index, fx.Node):
        return False
    made = shape_of(index.meta["val"])
    if base_name(node) == "index_add" or len(made) <= way or made[way] == 1:
        return True
    source = index.args[0] if base_name(index) in ("expand", "expand_as") else None
    if not isinstance(source, fx.Node) or len(index.users) > 1:
        return False
    before = shape_of(source.meta["val"])
    alike = len(before) < len(made) - way or before[way - len(made)] == 1
    added = run.states(node.args[3])
    if alike and run.free and isinstance(added, State):
        run.note_layouts(index, [layout(added.labels)])
    return alike
