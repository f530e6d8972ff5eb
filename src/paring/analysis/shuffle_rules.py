"""Rules for operations that lay channels side by side: shuffles, gated linear units, randomised slopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from paring.analysis.labels import along, spread
from paring.analysis.layer_rules import argument
from paring.analysis.repeats import either
from paring.analysis.state import State

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def pixel_shuffle(run: Interpreter, node: fx.Node) -> object:
    """r² neighbouring channels become one of r times the size: they go together."""
    x, factor = run.states(node.args[0]), run.values(node.args[1])
    if not isinstance(x, State) or (labels := run.lines(x.labels, -3)) is None:
        return run.barrier(node)
    rows = labels.view(-1, factor**2)
    run.couple(rows[:, :1].expand_as(rows), rows, "coupled by a pixel shuffle")
    value = F.pixel_shuffle(x.value, factor)
    return State(spread(rows[:, 0], tuple(value.shape), value.dim() - 3), value)


def channel_shuffle(run: Interpreter, node: fx.Node) -> object:
    """Channel j of every group comes to lie side by side: they go together, so that the groups stay equally large."""
    x, groups = run.states(node.args[0]), run.values(node.args[1])
    if not isinstance(x, State) or (labels := along(x.labels, 1)) is None:
        return run.barrier(node)
    rows = labels.view(groups, -1)
    run.couple(rows[:1].expand_as(rows), rows, "coupled by a channel shuffle")
    order = torch.arange(len(labels)).view(groups, -1).T.flatten()
    return State(x.labels.index_select(1, order), x.value.index_select(1, order))


def glu(run: Interpreter, node: fx.Node) -> object:
    """The first half times the sigmoid of the second: halves shrink alike, entry by entry."""
    x, dim = run.states(node.args[0]), argument(node, 1, "dim")
    if not isinstance(x, State):
        return run.barrier(node)
    dim = dim if isinstance(dim, int) else -1
    (left, right), (value, gate) = x.labels.chunk(2, dim), x.value.chunk(2, dim)
    run.couple(left, right, "coupled by a gated linear unit")
    return State(either(left, right), (value * gate.sigmoid()).masked_fill(value == 0, 0.0))


def rrelu(run: Interpreter, node: fx.Node) -> object:
    """A leaky ReLU whose slope is random in train mode, so that negative constants are none there."""
    x = run.states(node.args[0])
    if not isinstance(x, State):
        return run.barrier(node)
    lower, upper = (_number(argument(node, i, name), default) for i, name, default in _SLOPES)
    value: Tensor = F.leaky_relu(x.value, (lower + upper) / 2)
    return State(x.labels, value.masked_fill(x.value < 0, torch.nan) if run.training else value)


_SLOPES = ((1, "lower", 1 / 8), (2, "upper", 1 / 3))


def _number(held: object, default: float) -> float:
    return float(held) if isinstance(held, int | float) else default
