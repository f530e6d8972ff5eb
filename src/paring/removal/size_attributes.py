"""Sizes in the forward that are attributes of a module: `view(b, t, self.heads, self.head_dim)` with fewer heads.

Which numbers of a forward have to change is known from the interpretation. Where the module that uses such a number keeps it
as an attribute, the attribute can change instead, and the network stays the user's own. That is a guess; verification decides.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis.capture import untouched_random
from paring.analysis.interpret import Interpretation
from paring.analysis.state import packet
from paring.core import Inputs, kind_of
from paring.core.written_sizes import is_size
from paring.removal.plan import ShrinkPlan, full_name

_TRIES = 4  # plans that leave one name out, where changing all of them is wrong


def guesses(net: nn.Module, example: Inputs, analysis: Interpretation, plan: ShrinkPlan) -> Iterator[ShrinkPlan]:
    """The plan with attributes that may have to change with it, the likeliest first; none where there are no such.

    Args:
        net: the network.
        example: what it takes.
        analysis: its free interpretation.
        plan: made from that.
    """
    assert plan.kept is not None
    found = _attributes(net, _changes(analysis, plan.kept))
    read = _read(net, example, {name.rpartition(".")[0] for name in found}) if found else set()
    found = {name: size for name, size in found.items() if name in read}
    if not found:
        return
    yield replace(plan, attributes=found)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
    for left_out in names[:_TRIES] if len(names) > 1 else ():
        fewer = {name: size for name, size in found.items() if name.rpartition(".")[2] != left_out}
        yield replace(plan, attributes=fewer)


def _changes(analysis: Interpretation, kept: Tensor) -> dict[str, dict[int, set[int]]]:
    """Path of a module -> size in its forward -> what it becomes."""
    found: dict[str, dict[int, set[int]]] = {}
    for node, layouts in analysis.layouts.items():
        numbers = {leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if type(leaf) is int}
        if not numbers or packet(node.target).startswith(("conv", "group_norm")):
            continue
        for layout in layouts:
            for old, new in zip(layout.shape, layout.kept(kept), strict=True):
                if old != new and old in numbers:
                    found.setdefault(_path(node), {}).setdefault(old, set()).add(new)
    return found


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _read(net: nn.Module, example: Inputs, paths: set[str]) -> set[str]:
    """Attributes of these modules that one pass looks up, by path."""
    watched, read = copy.deepcopy(net), set()
    for path in paths:
        module = watched.get_submodule(path)
        kind = type(module)

        def note(self: nn.Module, leaf: str, path: str = path, kind: type[nn.Module] = kind) -> Any:
            read.add(full_name(path, leaf))
            return kind.__getattribute__(self, leaf)

        module.__class__ = type(kind.__name__, (kind,), {"__getattribute__": note, "__module__": kind.__module__})
    with torch.no_grad(), untouched_random():
        example.call(watched)
    return read


def _attributes(net: nn.Module, changes: dict[str, dict[int, set[int]]]) -> dict[str, int]:
    found: dict[str, int] = {}
    modules = dict(net.named_modules())
    for path, sizes in changes.items():
        module = modules.get(path)
        if module is None or kind_of(module) is not None:
            continue
        for leaf, value in vars(module).items():
            if is_size(value) and len(new := sizes.get(value, set())) == 1:
                found[full_name(path, leaf)] = next(iter(new))
    return found
