"""Products with a parameter that no layer owns: `x @ W`, and stacks of such, one for each expert of a mixture.

A stack is a parameter (experts, ...) of which the forward takes some slices, `W[ids]` or `W[3]`, or all of them at once. Units of a
stack are the same rows in every expert: they shrink together, so a unit goes when it is dead in all of them. What a row
computes is known where it is zero in all. Which experts a token goes to depends on what the router says of all of them, so none
goes as a whole.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from paring.analysis.interpreter import Rule
from paring.analysis.labels import spread, uniform
from paring.analysis.memory import base_name
from paring.analysis.projection import Projection
from paring.analysis.repeats import filled
from paring.analysis.state import Alias, Ref, Site, State, Weight, shape_of
from paring.analysis.weights import is_a
from paring.core import kind_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

TURNS = ("transpose", "permute", "t", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "unsqueeze")
_PICKS = ("index", "index_select", "select")
_PRODUCTS = ("matmul", "bmm", "linear", "einsum")


def or_weight(rule: Rule) -> Rule:
    """The rule of a move or a selection, or the parameter where one is moved or chosen from in front of a product."""

    def moved(run: Interpreter, node: fx.Node) -> object:
        held = run.values(node.args[0]) if node.args else None
        first = Weight(held, tuple(range(held.tensor.dim())), False) if isinstance(held, Ref) else held
        made = _moved(run, node, first) if isinstance(first, Weight) and _plain(run, first) else None
        if made is None:
            return rule(run, node)
        if not run.free:
            run.held_back = True
            return rule(run, node)
        run.weights[node] = made
        return made

    return moved


def or_stacked(rule: Rule) -> Rule:
    """The rule of a linear map, or one whose weight was chosen from a stack, or turned round."""

    def linear(run: Interpreter, node: fx.Node) -> object:
        if isinstance(run.values(node.args[1]), Weight) and len(node.args) == 2 and not node.kwargs:
            lead = "abcdefgh"[: len(shape_of(node.meta["val"])) - 1]
            return stacked(run, node, 1, "yx", f"{lead}x", f"{lead}y") or run.barrier(node)
        return rule(run, node)

    return linear


def _plain(run: Interpreter, weight: Weight) -> bool:
    """Whether this is a whole parameter of a module that is no layer, or the weight of a Linear that is never called."""
    held, whole = weight.held, run.whole(weight.held)
    owner = run.net.get_submodule(held.name.rpartition(".")[0])
    free = kind_of(owner) is None or (is_a(owner, "linear") and held.tensor is owner.weight and not _called(run, held))
    return free and isinstance(whole, nn.Parameter) and whole.shape == held.tensor.shape


def _called(run: Interpreter, held: Ref) -> bool:
    """Whether a linear map of torch reads the weight as it is."""
    starts = (node for node in run.captured.nodes if run.captured.tensors.get(node.name) == held.name)
    return any(base_name(user) == "linear" for node in starts for user in node.users)


def _moved(run: Interpreter, node: fx.Node, weight: Weight) -> Weight | None:
    name, ways = base_name(node), torch.tensor(weight.ways)
    if name in _PICKS:
        return _picked(run, node, weight)
    if len(weight.ways) < 2 or not isinstance(node.args[0], fx.Node) or not _multiplied(node):
        return None
    if name == "unsqueeze":
        at = int(run.values(node.args[1])) % (len(weight.ways) + 1)
        return Weight(weight.held, (*weight.ways[:at], -1, *weight.ways[at:]), weight.chosen)
    sizes = torch.arange(len(ways)).add(2).tolist()  # all different, so that the result's shape says where each went
    args: tuple[object, ...] = run.values(node.args[1:])
    turned = node.target(torch.empty(sizes, device="meta"), *args, **run.values(node.kwargs))  # type: ignore[operator]
    return Weight(weight.held, tuple(weight.ways[size - 2] for size in turned.shape), weight.chosen)


def _picked(run: Interpreter, node: fx.Node, weight: Weight) -> Weight | None:
    """Some slices along the first dimension: of a stack of matrices, or of what is added to what they give."""
    rank, name = weight.held.tensor.dim(), base_name(node)
    if weight.chosen or weight.ways != tuple(range(rank)) or rank not in (2, 3):
        return None
    if name == "index":
        index = node.args[1]
        fits = isinstance(index, list | tuple) and len(index) == 1 and isinstance(index[0], fx.Node)
        fits = fits and index[0].meta["val"].dtype in (torch.int64, torch.int32)  # type: ignore[index, union-attr]
    else:
        fits = run.values(node.args[1]) in (0, -rank)
    if not fits or (rank == 2 and not _added(node)) or (rank == 3 and not _multiplied(node)):
        return None
    lead = len(shape_of(node.meta["val"])) - rank + 1
    return Weight(weight.held, (*[-1] * lead, *range(1, rank)), True)


def _multiplied(node: fx.Node) -> bool:
    """Whether all that is made of a result by moves ends in products."""
    return all(base_name(user) in _PRODUCTS or (base_name(user) in TURNS and _multiplied(user)) for user in node.users)


def _added(node: fx.Node) -> bool:
    return all(base_name(user) == "add" for user in node.users)


def operand(weight: Weight, node: fx.Node) -> State:
    """What is known of it as a tensor: numbers that all slices have alike, where some were chosen."""
    held, shape = weight.held.tensor.detach().cpu().double(), shape_of(node.meta["val"])
    order = [way for way in weight.ways if way >= 0]
    if weight.chosen:
        held, order = torch.where((held == held[:1]).all(0), held[0], torch.nan), [way - 1 for way in order]
    sizes = iter(held.permute(order).shape)
    laid = held.permute(order).reshape([next(sizes) if way >= 0 else 1 for way in weight.ways])
    return State(filled(shape, -1, torch.int64), laid.expand(shape))


def stacked(run: Interpreter, node: fx.Node, at: int, term: str, other: str, out: str) -> object:
    """The contraction of an activation (letters `other`) and the weight at this argument (`term`); None where it is none."""
    operands: Any = node.args[1] if base_name(node) == "einsum" else node.args
    held, x = run.values(operands[at]), run.states(operands[1 - at])
    if isinstance(held, Ref):
        held = Weight(held, tuple(range(held.tensor.dim())), False)
    if not isinstance(held, Weight) or not isinstance(x, State) or not _plain(run, held):
        return None
    parameter = held.held.tensor
    ways = dict(zip(term, held.ways, strict=True))
    matrix = [a for a in term if ways[a] >= parameter.dim() - 2]
    inner, given = (
        [a for a in matrix if a in other and a not in out],
        [a for a in matrix if a in out and a not in other],
    )
    if len(inner) != 1 or len(given) != 1 or parameter.dim() not in (2, 3) or any(a not in other + out for a in term):
        return None
    if run.lines(x.labels, other.index(inner[0])) is None:
        return None
    if not run.free:
        run.held_back = True
        return None
    return _site(run, node, held, x, other.index(inner[0]), out.index(given[0]), ways[given[0]], ways[inner[0]])


def _site(
    run: Interpreter, node: fx.Node, weight: Weight, x: State, inner: int, given: int, unit: int, column: int
) -> State | None:
    parameter, name = weight.held.tensor, weight.held.name
    if run.tied(weight.held) or not _only_products(run, name):
        return None
    stack = len(parameter) if parameter.dim() == 3 else 0
    matrix = parameter.detach().transpose(-1, -2) if unit > column else parameter.detach()
    module = Projection(matrix.abs().amax(0) if stack else matrix, None)
    name = name.removesuffix("weight").rstrip("_.") or "weight"
    run.aliases[f"{name}.weight"] = Alias(weight.held.name, unit > column, stack=stack)
    shape, columns = shape_of(node.meta["val"]), run.lines(x.labels, inner)
    assert columns is not None
    units, constants = run.new_units(name, shape[given]), uniform(x.value, inner)
    zero = constants == 0
    value = torch.where((module.weight.detach().cpu()[:, ~zero] == 0).all(1), 0.0, torch.nan).double()
    constants = torch.where(zero, 0.0, torch.nan).double()
    rows = run.per_example(node, prod(shape) // shape[given])
    run.sites.append(Site(name, "linear", module, node, units, columns, constants, value, False, rows, True))
    return State(spread(units, shape, given), spread(value, shape, given))


def _only_products(run: Interpreter, name: str) -> bool:
    """Whether all that is made of a parameter ends in products."""
    starts = [node for node in run.captured.nodes if run.captured.tensors.get(node.name) == name]
    reached = [user for start in starts for user in start.users]
    while reached:
        user = reached.pop()
        if base_name(user) in (*TURNS, *_PICKS):
            reached += user.users
        elif base_name(user) not in _PRODUCTS:
            return False
    return True
