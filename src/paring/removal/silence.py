"""Branches that only ever add zeros: their layers go whole.

A sum that takes a term which is zero for every input does not need what computes it. What is then used by nothing else
is a silent branch: all of a residual block, say, whose last norm has scales and shifts of zero. Its stock layers are replaced by
`Zeros`, so that the user's forward runs as before: of one unit where that is enough, so that the sum may lose others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from paring.analysis.capture import Captured
from paring.analysis.interpret import Interpretation
from paring.analysis.memory import base_name, is_inplace, is_view
from paring.analysis.state import module_path, packet, ties_of
from paring.core.zeros import Zeros

_SUMS = ("add", "sub", "rsub")


def silent_layers(net: nn.Module, captured: Captured, analyses: Sequence[Interpretation]) -> list[str]:
    """Paths of the stock layers in silent branches of a captured network; analyses: of all modes that have to stay the same."""
    zeros = set.intersection(*(one.zeros for one in analyses))
    if not any(base_name(user) in _SUMS for node in zeros for user in node.users):
        return []
    alive = _alive(captured, zeros)
    nodes: dict[str, list[fx.Node]] = {}
    users: dict[str, list[fx.Node]] = {}
    for node in captured.nodes:
        if node.op == "call_function":
            nodes.setdefault(module_path(node), []).append(node)
        elif node.name in captured.tensors:
            users[captured.tensors[node.name]] = list(node.users)
    ties = ties_of(net)
    found = []
    for path, module in net.named_modules():
        own = {f"{path}.{leaf}" for leaf in module._parameters if module._parameters[leaf] is not None}
        if not path or not own or path not in nodes or not _stock(module) or own & ties.keys():
            continue
        readers = {node for name in own for node in users.get(name, ())}
        if not (set(nodes[path]) | readers) & alive and all(module_path(node) == path for node in readers):
            found.append(path)
    return found


@dataclass(frozen=True)
class Silence:
    """Layers that become zeros, by path. thin: of one unit, which leaves the width of the sums free."""

    paths: tuple[str, ...] = ()
    thin: bool = True


def silence(net: nn.Module, chosen: Silence) -> nn.Module:
    """Replace layers of `net` by zeros, in place, and return it."""
    for path in chosen.paths:
        parent, _, leaf = path.rpartition(".")
        stand_in = Zeros.of(net.get_submodule(path), thin=chosen.thin)
        assert stand_in is not None
        net.get_submodule(parent)._modules[leaf] = stand_in
    return net


def _stock(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module).__module__.startswith("torch.nn.modules") and not hooked and Zeros.of(module) is not None


def _alive(captured: Captured, zeros: set[fx.Node]) -> set[fx.Node]:
    """What the outputs depend on, terms that are zero left out of sums."""
    alive: set[fx.Node] = set()
    todo = [node for node in captured.nodes if node.op == "output" or packet(node.target).startswith("_assert")]
    inplace = [node for node in captured.nodes if node.op == "call_function" and is_inplace(packet(node.target))]
    while todo:
        while todo:
            node = todo.pop()
            if node not in alive:
                alive.add(node)
                todo += [one for one in node.all_input_nodes if not (one in zeros and _adds(node, one))]
        todo = [node for node in inplace if node not in alive and any(one in alive for one in _memory(node))]
    return alive


def _adds(node: fx.Node, term: fx.Node) -> bool:
    """Is the term added by this node, and read by nobody who sees what becomes of it there?"""
    return base_name(node) in _SUMS and (not is_inplace(packet(node.target)) or len(term.users) == 1)


def _memory(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory an operation writes into."""
    found = []
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        found.append(source)
        source = source.args[0] if is_view(source) and source.args else None
    return found
