"""Parameters and buffers outside of layers that run along units: layer scale, tables of positions, frozen norms, temperatures.

A tensor that no input has a part in meets units along dimension d. It shrinks with them when cutting the parameters that it
is made of cuts it along d, and nothing else. That is tried, as for operations without a rule: the part of the graph that
makes it runs on random numbers (integers keep their values), then without some slices of the parameters, each along one
dimension of the right size, and has to come out without the same slices. So it does not matter what lies between: views,
the lookup of a table of relative positions, w / sqrt(variance + eps).

A parameter is cut when all that is made of it meets units in this way, and the same of them live wherever it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis.grids import SliceTie, grid_dims, slices
from paring.analysis.labels import varying
from paring.analysis.repeats import carries
from paring.analysis.state import Loose, State, packet, shape_of, ties_of
from paring.analysis.state import number as example_of
from paring.analysis.work import is_size

if TYPE_CHECKING:
    from paring.analysis.capture import Captured
    from paring.analysis.interpreter import Interpreter

_TRIED = 16  # ways to choose the dimensions that are cut
_LARGEST = 2**22  # entries of what is tried
_REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError)


def shrinks(run: Interpreter, node: fx.Node, bare: State, labels: Tensor) -> bool:
    """Whether `bare`, an operand of the node without units, can shrink with those of these labels; if so, it is noted.

    labels: of what it meets, with the dimensions that it is broadcast to.
    """
    shift = labels.dim() - bare.labels.dim()
    meets = [d for d in varying(labels) if d >= shift and bare.labels.shape[d - shift] > 1]
    if carries(bare.labels) or shift < 0 or len(meets) != 1:
        return False
    (dim,) = meets
    count = labels.shape[dim]
    if grid_dims(labels)[0] != dim or bare.labels.shape[dim - shift] != count:
        return False
    box = slices(labels, [dim])
    if bool((box < 0).any()):
        return False
    made = [
        source
        for source in node.all_input_nodes
        if source not in run.moving and source not in run.weights and _shape(source) == bare.value.shape
    ]
    found = [_cuts(run, source, dim - shift, box) for source in made]  # alike operands meet the same units
    found += [
        [(one.held.name, one.ways[dim - shift], box, ())]
        for source in node.all_input_nodes
        if (one := run.weights.get(source)) is not None
        and _shape(source) == bare.value.shape
        and one.ways[dim - shift] >= 0
    ]
    if not found or not all(found):
        return False
    for name, where, part, views in (one for some in found for one in some):
        held = attrgetter(name)(run.net)
        each = held.numel() // len(part) if isinstance(held, torch.nn.Parameter) else 0
        run.loose.append(Loose(name, where, part, node, each, views))
    return True


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    made = node.meta.get("val")
    return shape_of(made) if isinstance(made, Tensor) else None


def settle(run: Interpreter) -> list[Loose]:
    """The tensors that shrink; of those that are used otherwise too the units stay."""
    by_name: dict[str, list[Loose]] = {}
    for one in run.loose:
        by_name.setdefault(one.name, []).append(one)
    ties, found = ties_of(run.net), []
    while by_name:
        bad = next((n for n, meets in by_name.items() if n in ties or not _everywhere(run, n, meets)), None)
        if bad is None:
            break
        spoilt = {one.node for one in by_name.pop(bad)}
        for name, meets in list(by_name.items()):  # what is made of several shrinks as a whole or not at all
            by_name[name] = [one for one in meets if one.node not in spoilt]
        for one in run.loose:
            if one.node in spoilt:
                run.keep(one.box, "coupled with a tensor that cannot shrink")
        by_name = {name: meets for name, meets in by_name.items() if meets}
    for meets in by_name.values():
        first = meets[0]
        for other in meets[1:]:
            if first.box.shape[1] == other.box.shape[1] == 1 and not _in_slices(run, first.box, other.box):
                run.couple(first.box, other.box, f"coupled by '{first.name}'")
            else:
                run.slice_ties.append(SliceTie((first.box, other.box)))
        found.append(first)
    return found


def _in_slices(run: Interpreter, *boxes: Tensor) -> bool:
    """Whether all these ids are of slices that live together, as those of heads do: keys and values stay units of their own."""
    tied = [part.flatten() for tie in run.slice_ties for part in tie.parts]
    return bool(tied) and all(bool(torch.isin(box, torch.cat(tied)).all()) for box in boxes)


def _everywhere(run: Interpreter, name: str, meets: list[Loose]) -> bool:
    """Whether all that is made of this tensor ends where it meets units, cut along one dimension."""
    ends = {one.node for one in meets}
    reached = [node for node in run.captured.nodes if run.captured.tensors.get(node.name) == name]
    while reached:
        for user in reached.pop().users:
            if user not in ends and user not in run.weights and (user in run.moving or user.op == "output"):
                return False
            if user not in ends:
                reached.append(user)
    return len({one.dim for one in meets}) == 1


_Cut = tuple[str, int, Tensor, tuple[fx.Node, ...]]
"""A tensor to cut, along which dimension, the ids that its slices meet, and the views whose sizes follow."""


def _cuts(run: Interpreter, source: fx.Node, dim: int, box: Tensor) -> list[_Cut]:
    """What to cut so that `source` is cut along `dim`, where it meets the units of the box; nothing where nothing does that.

    Of tensors that are joined along it each is cut by itself.
    """
    if (found := _whole(run, source, dim, len(box))) is not None:
        cut, views = found
        return [(name, where, box, views) for name, where in cut.items()]
    if packet(source.target) not in ("cat", "concat", "concatenate") or _joined(source) != dim:
        return []
    cuts: list[_Cut] = []
    joined: Any = source.args[0]
    for one, part in zip(joined, box.split([shape_of(one.meta["val"])[dim] for one in joined]), strict=True):
        if not (some := _cuts(run, one, dim, part)):
            return []
        cuts += some
    return cuts


def _joined(node: fx.Node) -> int:
    """The dimension along which a `cat` joins."""
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % len(shape_of(node.meta["val"]))


def _whole(
    run: Interpreter, source: fx.Node, dim: int, count: int
) -> tuple[dict[str, int], tuple[fx.Node, ...]] | None:
    """Which tensors to cut along which dimension, so that `source` is cut along `dim`, and which views say so.

    None where nothing does that.
    """
    part = made_of(source)
    leaves = [node for node in part if node.op in ("placeholder", "get_attr")]
    held = {node: held_tensor(run.net, run.captured, node) for node in leaves}
    named = [node for node in leaves if node.name in run.captured.tensors]
    if any(one is None or one.numel() > _LARGEST for one in held.values()):
        return None
    given = {node: _random(one, number) for number, (node, one) in enumerate(held.items()) if one is not None}
    options = [[*(d for d, n in enumerate(given[node].shape) if n == count), None] for node in named]
    if all(len(some) == 1 for some in options):
        return None
    try:
        whole = _evaluate(part, given)[source]
    except _REFUSALS:
        return None
    views = tuple(node for node in part if _writes(node, count))
    for chosen in islice(product(*options), _TRIED):
        cut = {node: d for node, d in zip(named, chosen, strict=True) if d is not None}
        for changed in dict.fromkeys((views, ())) if cut else ():
            if _follows(part, source, given, whole, cut, dim, changed):
                return {run.captured.tensors[node.name]: d for node, d in cut.items()}, changed
    return None


def _follows(
    part: list[fx.Node],
    source: fx.Node,
    given: Mapping[fx.Node, Tensor],
    whole: Tensor,
    cut: Mapping[fx.Node, int],
    dim: int,
    views: tuple[fx.Node, ...],
) -> bool:
    """Whether the source loses the slices along `dim` that these tensors lose; views: whose sizes follow."""
    count = whole.shape[dim]
    for number in range(3):
        keep = torch.rand(count, generator=torch.Generator().manual_seed(number)) > 0.5
        keep[number % count], keep[(number + 1) % count] = True, False
        at = keep.nonzero().flatten()
        smaller = {node: one.index_select(cut[node], at) if node in cut else one for node, one in given.items()}
        try:
            small = _evaluate(part, smaller, views, count, len(at))[source]
        except _REFUSALS:
            return False
        wanted = whole.index_select(dim, at)
        if small.shape != wanted.shape or not torch.allclose(small, wanted, rtol=1e-9, atol=1e-12, equal_nan=True):
            return False
    return True


def made_of(source: fx.Node) -> list[fx.Node]:
    """The node and all that it is made of, in order."""
    found: set[fx.Node] = set()
    waiting = [source]
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting += () if is_size(node) else node.all_input_nodes
    return [node for node in source.graph.nodes if node in found]


def held_tensor(net: nn.Module, captured: Captured, node: fx.Node) -> Tensor | None:
    """The parameter, buffer or constant that a node of a captured graph stands for; None for others."""
    if node.name in captured.tensors:
        held: Any = attrgetter(captured.tensors[node.name])(net)
    elif node.name in captured.constants:
        held = captured.constants[node.name]
    elif node.op == "get_attr":
        held = attrgetter(str(node.target))(captured.program.graph_module)
    else:
        return None
    return held if isinstance(held, Tensor) else None


def _random(held: Tensor, seed: int) -> Tensor:
    """Numbers of this shape that are all different and positive; integers and truth values as they are."""
    if not held.is_floating_point():
        return held.cpu()
    return torch.rand(held.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5


def _writes(node: fx.Node, size: int) -> bool:
    """Whether this is a view whose sizes hold this one."""
    return packet(node.target) in ("view", "reshape", "expand", "_unsafe_view") and size in node.args[1]  # type: ignore[operator]


def resized(sizes: Iterable[Any], size: int, now: int) -> list[Any]:
    """The sizes of a view, one of them changed."""
    return [now if one == size else one for one in sizes]


def _evaluate(
    part: list[fx.Node], given: Mapping[fx.Node, Tensor], views: Sequence[fx.Node] = (), size: int = 0, now: int = 0
) -> dict[fx.Node, Any]:
    """Results of these nodes, where these views write `now` in place of `size`."""
    made: dict[fx.Node, Any] = dict(given)

    def value(arg: object) -> object:
        return made[arg] if isinstance(arg, fx.Node) else arg

    for node in part:
        if node in made:
            continue
        if is_size(node):
            made[node] = example_of(node.meta["val"])
            continue
        args, kwargs = pytree.tree_map(value, (node.args, dict(node.kwargs)), is_leaf=lambda v: isinstance(v, fx.Node))
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "dtype", "layout", "pin_memory")}
        if packet(node.target) in ("to", "_to_copy", "type_as", "float", "double"):
            made[node] = args[0]
            continue
        if node in views:
            args = (args[0], resized(args[1], size, now), *args[2:])
        made[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return made
