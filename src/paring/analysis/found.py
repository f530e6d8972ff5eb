"""What an operation without a rule of its own does with units: found out, not listed.

torch tags operations that work entry by entry (`torch.Tag.pointwise`); all others are tried: see `slicewise`. What draws
random numbers, writes into more than its first argument, or is not torch's own, is a barrier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.utils import _pytree as pytree

from paring.analysis.entrywise import entrywise
from paring.analysis.memory import is_inplace, is_view
from paring.analysis.repeats import carries
from paring.analysis.slicewise import slicewise
from paring.analysis.state import State, packet

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def found(run: Interpreter, node: fx.Node) -> object:
    """Entry by entry, slice by slice, or not understood."""
    target = node.target
    states = [v for v in pytree.tree_leaves(run.states((node.args, node.kwargs))) if isinstance(v, State)]
    if not isinstance(target, torch._ops.OpOverload) or not any(carries(one.labels) for one in states):
        return run.barrier(node)
    tags, schema = target.tags, target._schema
    if target.namespace != "aten" or torch.Tag.nondeterministic_seeded in tags:
        return run.barrier(node)
    written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    if any(written[1:]) or (any(written) and not is_inplace(packet(target))):
        return run.barrier(node)
    if (
        node in run.shared and is_view(node) and not is_inplace(packet(target))
    ):  # written into, and not through to its source
        for one in states:
            one.value = torch.full_like(one.value, torch.nan)
        return run.barrier(node)
    if torch.Tag.pointwise in tags:
        return entrywise(run, node, free=run.free)
    return slicewise(run, node)
