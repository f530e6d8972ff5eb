"""A parameter that is reshaped and then has its own shape again is that parameter, as a kernel that is squeezed and unsqueezed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from paring.analysis import ops
from paring.analysis.interpreter import Rule
from paring.analysis.state import packet, shape_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def or_same(rule: Rule) -> Rule:
    """The rule of a reshape, or the parameter where it comes back to the shape that it has."""

    def reshaped(run: Interpreter, node: fx.Node) -> object:
        source = node
        while packet(source.target) in ops.BARE and isinstance(source.args[0], fx.Node):
            source = source.args[0]
        held = run.parameter(source)
        same = held is not None and tuple(held.tensor.shape) == shape_of(node.meta["val"])
        return held if same else rule(run, node)

    return reshaped
