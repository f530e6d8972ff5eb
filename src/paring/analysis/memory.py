"""Which results share memory with a view that is written into, so that they cannot be stored once (see `repeats`)."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import fx

from paring.analysis.ops import MOVES
from paring.analysis.state import packet


def is_inplace(name: str) -> bool:
    """Does the operation of this name write into its first argument?"""
    return name.endswith("_") and not name.endswith("__")


def is_view(node: fx.Node) -> bool:
    """May the result share memory with the first argument?"""
    name = packet(node.target)
    listed = node.target is operator.getitem or is_inplace(name) or name in MOVES
    return node.op == "call_function" and (listed or bool(getattr(node.target, "is_view", False)))


def shared(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes that share memory with a view, of which something is written in place: there memory has to be real."""
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        family[node] = [node]
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and is_view(node):
            family[source].extend(family[node])
            for one in family[node]:
                family[one] = family[source]
    found = set()
    for members in {id(members): members for members in family.values()}.values():
        calls = [node for node in members if node.op == "call_function"]
        moved = any(is_view(node) and not is_inplace(packet(node.target)) for node in calls)
        if moved and any(is_inplace(packet(node.target)) for node in calls):
            found.update(members)
    return found


def base_name(node: fx.Node) -> str:
    """The name of the operation, the same for its in-place form."""
    name = packet(node.target)
    return name.rstrip("_") if is_inplace(name) else name
