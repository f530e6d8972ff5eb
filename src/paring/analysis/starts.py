"""Zeros that a loop begins with: `h = x.new_zeros(b, n)`, `for ...: h = cell(x, h)`.

They hold no unit, but their size follows the units that take their place in the next round. Zeros that a layer reads carry ids
of their own, which meet those of the next round at the layer's second call; a tensor of one number that units meet takes
over their ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from paring.analysis.grids import layout
from paring.analysis.labels import spread, varying
from paring.analysis.memory import base_name
from paring.analysis.repeats import carries, once
from paring.analysis.state import State, packet, shape_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

MADE = ("zeros", "new_zeros")


def _channels_read(node: fx.Node, state: State) -> int | None:
    """The dimension of zeros made in the forward along which a layer reads them; None for anything else."""
    if packet(node.target) not in MADE or state.value.dim() < 2:
        return None
    dims = {dim for user in node.users if (dim := _channels(user, node, state.value.dim())) is not None}
    return dims.pop() if len(dims) == 1 else None


def start(run: Interpreter, node: fx.Node, state: State) -> None:
    """Give zeros that a layer reads ids along its channels; where sizes stay, say that they hold something back."""
    dim = _channels_read(node, state)
    run.held_back |= dim is not None and not run.free
    if dim is not None and run.free and node not in run.shared:
        shape = tuple(state.value.shape)
        state.labels = spread(run.new_units(f"{node.name}: start", shape[dim]), shape, dim).clone()
        run.note_layouts(node, [layout(state.labels)])


def adopt(run: Interpreter, node: fx.Node, state: State, labels: Tensor) -> bool:
    """Let zeros made in the forward take over the labels of what they meet in this node, where sizes may change."""
    if carries(state.labels) or state.value.shape != labels.shape or not varying(labels):
        return False
    if not bool((once(state.value) == 0).all()):
        return False
    for arg in node.all_input_nodes:
        if run.values(arg) is state and (root := _root(run, arg, labels.shape)) is not None:
            run.held_back |= not run.free
            if run.free:
                state.labels = labels.clone()
                run.note_layouts(root, [layout(labels)])
            return run.free
    return False


def _root(run: Interpreter, node: fx.Node, shape: torch.Size) -> fx.Node | None:
    """Where these zeros, or the ones that they are made like, are made with a size; None for anything else."""
    while packet(node.target) == "zeros_like" and isinstance(node.args[0], fx.Node) and node not in run.shared:
        node = node.args[0]
    made = node.meta.get("val")
    fits = packet(node.target) in MADE and isinstance(made, Tensor) and torch.Size(shape_of(made)) == shape
    return node if fits and node not in run.shared else None


def _channels(user: fx.Node, node: fx.Node, rank: int) -> int | None:
    """The dimension of the node along which a layer reads its channels."""
    name = base_name(user)
    if name in ("cat", "concat") and user.args and node in user.all_input_nodes:
        found = {dim for next_ in user.users if (dim := _channels(next_, user, rank)) is not None}
        given = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
        return found.pop() if len(found) == 1 and isinstance(given, int) and given % rank in found else None
    if name.endswith("_cell"):
        return rank - 1
    if not user.args or user.args[0] is not node:
        return None
    if name == "linear":
        return rank - 1
    return rank - 1 - int(name[4]) if name.startswith("conv") and name[4:5].isdigit() else None
