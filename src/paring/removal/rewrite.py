"""Write new sizes into a captured graph.

The forward of a network may hold sizes as numbers: `view(b, t, 4, 16)`, `split(64)`, `x[:, 32:]`, the groups of a
convolution, the scale that attention takes from its input. The interpretation knows where every unit lies in every
result; so the new size of a dimension is the number of slices that stay, and a start index the number of slices
before it that stay.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from paring.analysis.grids import Layout
from paring.analysis.interpret import Interpretation
from paring.analysis.layer_rules import argument
from paring.analysis.loose import resized
from paring.analysis.starts import MADE
from paring.analysis.state import FeatureNorm, number, packet
from paring.analysis.weights import dims, living_groups

_SPLITS = (
    "split",
    "chunk",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "tensor_split",
)


class RewriteError(ValueError):
    """A size in the graph cannot be rewritten; the message says which and why."""


def rewrite(analysis: Interpretation, kept: Tensor, copy_: Callable[[fx.Node], fx.Node]) -> str:
    """Change the sizes in the copy of the interpreted graph; copy_: node -> its copy. kept (ids + 1,): ids that stay.

    Returns the first size that had to change, for the user's eyes ("" when none had to). Raises `RewriteError`.
    """
    changed = ""
    scales = {one.node: one for one in analysis.scaled}
    sites = {site.node: site for site in analysis.sites}
    for node, layouts in analysis.layouts.items():
        name = packet(node.target).rstrip("_")
        source = next((analysis.layouts[n] for n in node.all_input_nodes if n in analysis.layouts), None)
        before = (name, copy_(node).args, copy_(node).kwargs)
        if node in scales and (size := scales[node].left(kept)) != scales[node].size:
            copy_(node).kwargs = {**copy_(node).kwargs, "scale": scales[node].size ** -0.5}
            assert size
            continue
        shapes = [one.kept(kept) for one in layouts]
        moved = source is not None and source[0].kept(kept) != source[0].shape
        if not moved and all(shape == one.shape for shape, one in zip(shapes, layouts, strict=True)):
            continue
        if name in ("view", "reshape", "_unsafe_view", "expand"):
            _sizes(copy_(node), 1, layouts[0].shape, shapes[0])
        elif name in MADE:
            _sizes(copy_(node), int(name == "new_zeros"), layouts[0].shape, shapes[0])
        elif name == "unflatten":
            _unflatten(node, copy_(node), layouts[0].shape, shapes[0])
        elif name == "repeat_interleave" and "output_size" in node.kwargs:
            copy_(node).kwargs = {k: v for k, v in node.kwargs.items() if k != "output_size"}
        elif name in ("group_norm", "conv1d", "conv2d", "conv3d") or name.startswith("conv_transpose"):
            site = sites.get(node)
            even = site is not None and dims(site.module)[0] == 0
            groups = int(_given(node, 6, "groups", 1))  # those captured: the module may have its new sizes by now
            left = living_groups(groups, kept[site.units]) if site is not None and even else 0
            _groups(node, copy_(node), name, source, kept, left)
        elif source is not None:
            _cut(node, copy_(node), name, source[0], shapes, kept)
        if not changed and (name, copy_(node).args, copy_(node).kwargs) != before:
            changed = f"{name} in {_where(node)}"
    for one in analysis.loose:
        size, now = len(one.box), int(kept[one.box].any(1).sum())
        for node in one.views if size != now else ():
            copy_(node).update_arg(1, resized(copy_(node).args[1], size, now))  # type: ignore[arg-type]
            changed = changed or f"{packet(node.target)} in {_where(node)}"
    for norm in analysis.features:
        stays = kept[norm.labels]
        if not bool(stays.all()):
            _narrower(norm, copy_, len(stays), int(stays.sum()))
    return changed


def _narrower(norm: FeatureNorm, copy_: Callable[[fx.Node], fx.Node], before: int, after: int) -> None:
    """A norm over fewer units, see `analysis.feature_norms`; a LayerNorm pads them with zeros."""
    node, eps = copy_(norm.node), norm.eps * before / after
    if norm.loose:
        added = copy_(next(user for user in norm.node.users if packet(user.target) == "add"))
        added.args = tuple(arg if isinstance(arg, fx.Node) else eps for arg in added.args)
        return
    x: Any = node.args[0]
    weight, bias = (cast(Any, argument(node, *one)) for one in ((2, "weight"), (3, "bias")))
    if not norm.centred:
        node.args, node.kwargs = (x, [after], weight, eps), {}
        return
    aten, call = torch.ops.aten, node.graph.call_function
    with node.graph.inserting_before(node):
        padded = call(aten.constant_pad_nd.default, (x, [0, before - after], 0.0))
        whole = call(aten.layer_norm.default, (padded, [before], None, None, norm.eps))
        y = call(aten.mul.Tensor, (call(aten.slice.Tensor, (whole, -1, 0, after)), weight))
        y = y if bias is None else call(aten.add.Tensor, (y, bias))
    node.replace_all_uses_with(y)
    node.graph.erase_node(node)


def _where(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return f"'{path}'" if path else "the network's own forward"


def _sizes(node: fx.Node, position: int, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    given = list(node.args[position])  # type: ignore[arg-type]
    shift = len(old) - len(given)
    for d, size in enumerate(given):
        was, now = old[d + shift], new[d + shift]
        if was != now and size != -1:
            given[d] = _ratio(node, size, was, now)
    node.update_arg(position, given)


def _ratio(node: fx.Node, size: object, was: int, now: int) -> object:
    """A size that may be symbolic (a batch times heads), times now / was."""
    if not isinstance(size, fx.Node):
        return now
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (size, now))
        return node.graph.call_function(operator.floordiv, (product, was))


def _unflatten(node: fx.Node, new: fx.Node, old: tuple[int, ...], shape: tuple[int, ...]) -> None:
    given = list(node.args[2])  # type: ignore[arg-type]
    dim = int(_given(node, 1, "dim", 0)) % (len(old) - len(given) + 1)
    sizes = list(new.args[2])  # type: ignore[arg-type]
    for i, size in enumerate(given):
        if size != -1 and old[dim + i] != shape[dim + i]:
            sizes[i] = _ratio(new, sizes[i], old[dim + i], shape[dim + i])
    new.update_arg(2, sizes)


def _groups(node: fx.Node, new: fx.Node, name: str, source: list[Layout] | None, kept: Tensor, left: int) -> None:
    """As many channels per group as before; left: the groups that live, where that is known."""
    position = 1 if name == "group_norm" else 6
    groups = int(_given(node, position, "groups", 1))
    if groups == 1 or (source is None and not left):
        return
    if left:
        if len(node.args) > position:
            new.update_arg(position, left)
        else:
            new.update_kwarg("groups", left)
        return
    assert source is not None
    channel = 1 if name == "group_norm" else len(source[0].shape) - int(name[-2])
    if name != "group_norm":
        channel -= 1
    was, now = source[0].shape[channel], source[0].kept(kept)[channel]
    if len(node.args) > position:
        new.update_arg(position, groups * now // was)
    else:
        new.update_kwarg("groups", groups * now // was)


def _cut(node: fx.Node, new: fx.Node, name: str, source: Layout, shapes: list[tuple[int, ...]], kept: Tensor) -> None:
    rank = len(source.shape)
    if name in _SPLITS:
        dim = int(_given(node, 2, "dim", 0)) % rank
        if dim in source.dims:
            new.target = torch.ops.aten.split_with_sizes.default
            new.args, new.kwargs = (new.args[0], [shape[dim] for shape in shapes], dim), {}
    elif name == "squeeze":
        dims = _given(node, 1, "dim", list(range(rank)))
        asked = [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
        new.target = torch.ops.aten.squeeze.dims
        new.args, new.kwargs = (new.args[0], [d for d in asked if source.shape[d] == 1]), {}
    elif name in ("slice", "narrow", "select"):
        dim = int(_given(node, 1, "dim", 0)) % rank
        if dim not in source.dims:
            return
        size = source.shape[dim]
        start = _given(node, 2, "index" if name == "select" else "start", 0) or 0
        start = min(start + size if start < 0 else start, size)
        first = source.before(dim, start, kept)
        if name == "select":
            new.args, new.kwargs = (new.args[0], dim, first), {}
        elif name == "narrow":
            new.args, new.kwargs = (new.args[0], dim, first, shapes[0][dim]), {}
        elif _given(node, 4, "step", 1) == 1:
            new.args, new.kwargs = (new.args[0], dim, first, first + shapes[0][dim]), {}
        else:
            stop, left = min(_given(node, 3, "end", size), size), source.kept(kept)[dim]
            if left != size and (stop < size or start >= _given(node, 4, "step", 1)):
                raise RewriteError(f"a slice with a step in {_where(node)} takes from units that shrink")
            new.args = (new.args[0], dim, start, left if left != size else stop, _given(node, 4, "step", 1))


def _given(node: fx.Node, position: int, name: str, default: object) -> Any:
    value: Any = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    if isinstance(value, fx.Node):
        value = number(value.meta.get("val"))
    return value
