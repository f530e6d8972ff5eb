"""Branches that only ever add zeros: their layers go whole.

A sum that takes a term which is zero for every input does not need what computes it. What is then used by nothing else
is a silent branch: all of a residual block, say, whose last norm has scales and shifts of zero. Its stock layers are replaced by
`Zeros`, so that the user's forward runs as before: of one unit where that is enough, so that the sum may lose others. A module
that computes beside its layers, as attention does, is replaced whole where it gives what has the shape of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from paring.analysis.alive import alive_nodes
from paring.analysis.capture import Captured
from paring.analysis.interpret import Interpretation
from paring.analysis.memory import base_name, is_inplace
from paring.analysis.state import module_path, module_paths, packet, ties_of
from paring.analysis.work import work
from paring.core.fused_encoder import part_of_fused
from paring.core.zeros import Zeros

_SUMS = ("add", "sub", "rsub")


def silent_layers(net: nn.Module, captured: Captured, analyses: Sequence[Interpretation]) -> list[str]:
    """Paths of the stock layers in silent branches of a captured network; analyses: of all modes that have to stay the same."""
    zeros = set.intersection(*(one.zeros for one in analyses))
    if not any(base_name(user) in _SUMS for node in zeros for user in node.users):
        return []
    alive = alive_nodes(captured, lambda node, one: one in zeros and _adds(node, one))
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


def silent_modules(net: nn.Module, captured: Captured, analyses: Sequence[Interpretation]) -> list[str]:
    """Paths of modules in silent branches that compute something beside their layers and give zeros like their input."""
    zeros = set.intersection(*(one.zeros for one in analyses))
    alive = alive_nodes(captured, lambda node, one: one in zeros and _adds(node, one))
    inside: dict[str, list[fx.Node]] = {}
    for node in captured.nodes:
        for path in module_paths(node):
            inside.setdefault(path, []).append(node)
    ties, found = ties_of(net), list[str]()
    for path, module in net.named_modules():
        nodes = inside.get(path, [])
        if not path or not nodes or alive.intersection(nodes) or any(_within(path, one) for one in found):
            continue
        own = {f"{path}.{leaf}" for leaf, _ in module.named_parameters()}
        readers = {user for node in captured.nodes if captured.tensors.get(node.name) in own for user in node.users}
        if own & ties.keys() or not readers <= set(nodes) or any(_hooked(one) for one in module.modules()):
            continue
        if _more_than_layers(module, nodes, net) and _like_input(nodes, zeros, captured):
            found.append(path)
    return found


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")


def _more_than_layers(module: nn.Module, nodes: Sequence[fx.Node], net: nn.Module) -> bool:
    """Whether some arithmetic, or a parameter, is in no stock layer that zeros could stand for."""
    if any(not _stock(one) and any(True for _ in one.parameters(recurse=False)) for one in module.modules()):
        return True
    for node in nodes:
        if node.op == "call_function" and not _stock(net.get_submodule(module_path(node))):
            try:
                if work(node) is not None:
                    return True
            except NotImplementedError:
                return True
    return False


def _like_input(nodes: Sequence[fx.Node], zeros: set[fx.Node], captured: Captured) -> bool:
    """Whether one tensor comes out, all zeros, of the shape of the first one that goes in."""
    held = set(nodes)
    made = [node for node in nodes if any(user not in held for user in node.users)]
    given = (
        one for node in nodes for one in node.all_input_nodes if one not in held and one.name not in captured.tensors
    )
    first = next((one for one in given if isinstance(one.meta.get("val"), Tensor)), None)
    if len(made) != 1 or made[0] not in zeros or first is None:
        return False
    return bool(made[0].meta["val"].shape == first.meta["val"].shape)


@dataclass(frozen=True)
class Silence:
    """Layers that become zeros, by path. thin: of one unit, which leaves the width of the sums free.

    whole: modules that become zeros with all that is in them; `paths` names none of these parts.
    """

    paths: tuple[str, ...] = ()
    thin: bool = True
    whole: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that becomes zeros."""
        return (*self.whole, *self.paths)

    @classmethod
    def ways(cls, paths: Sequence[str], whole: Sequence[str]) -> tuple[Silence, ...]:
        """What to try, the one that leaves the least first."""
        rest = tuple(path for path in paths if not any(_within(path, one) for one in whole))
        found = [cls(rest, thin, tuple(whole)) for thin in (True, False)] if whole else []
        return (*found, *(cls(tuple(paths), thin) for thin in (True, False) if paths))


def silence(net: nn.Module, chosen: Silence) -> nn.Module:
    """Replace layers of `net` by zeros, in place, and return it."""
    for path in chosen.names:
        parent, _, leaf = path.rpartition(".")
        module = net.get_submodule(path)
        stand_in = Zeros.whole(module) if path in chosen.whole else Zeros.of(module, thin=chosen.thin)
        assert stand_in is not None
        owner = net.get_submodule(parent)
        owner._modules[leaf] = stand_in
        part_of_fused(owner)
    return net


def _stock(module: nn.Module) -> bool:
    return (
        type(module).__module__.startswith("torch.nn.modules") and not _hooked(module) and Zeros.of(module) is not None
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _adds(node: fx.Node, term: fx.Node) -> bool:
    """Is the term added by this node, and read by nobody who sees what becomes of it there?"""
    return base_name(node) in _SUMS and (not is_inplace(packet(node.target)) or len(term.users) == 1)
