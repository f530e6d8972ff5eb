"""What the outputs of a captured network depend on, some terms left out."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from paring.analysis.capture import Captured
from paring.analysis.memory import is_inplace, is_view
from paring.analysis.state import packet


def alive_nodes(captured: Captured, left_out: Callable[[fx.Node, fx.Node], bool]) -> set[fx.Node]:
    """The nodes that the outputs depend on. left_out: of a node and one that it reads, whether it might as well not."""
    alive: set[fx.Node] = set()
    todo = [node for node in captured.nodes if node.op == "output" or packet(node.target).startswith("_assert")]
    inplace = [node for node in captured.nodes if node.op == "call_function" and is_inplace(packet(node.target))]
    while todo:
        while todo:
            node = todo.pop()
            if node not in alive:
                alive.add(node)
                todo += [one for one in node.all_input_nodes if not left_out(node, one)]
        todo = [node for node in inplace if node not in alive and any(one in alive for one in _memory(node))]
    return alive


def _memory(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory an operation writes into."""
    found = []
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        found.append(source)
        source = source.args[0] if is_view(source) and source.args else None
    return found
