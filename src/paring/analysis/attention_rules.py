"""Rules for attention: scaled dot product attention, softmax, masks.

Scores are the product of queries and keys over the head dimensions, which go in pairs; the result is the product of the
weights and the values over the positions, so that a value dimension passes through and needs its head. A head lives as
long as one of its value dimensions is needed. The weights sum to one: values that are the same constant at all
positions come out as that constant, unless a row is masked fully or dropout is on. A mask that is copied for each head
has copies that go with the heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from paring.analysis.attention_scale import Scaled
from paring.analysis.contractions import beside, product
from paring.analysis.found import found
from paring.analysis.grids import grid_dims, rectangle, slices
from paring.analysis.labels import varying
from paring.analysis.ops import CASTS, MOVES
from paring.analysis.repeats import carries, filled, once
from paring.analysis.state import State, known, packet

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

_ATTENTION = "scaled_dot_product_attention"
_MASKED = ((_ATTENTION, [3]), ("baddbmm", [0]), ("masked_fill", [1]), ("where", [0]), ("add", [0]), ("add", [1]))
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def attention(run: Interpreter, node: fx.Node) -> object:
    """`scaled_dot_product_attention` of (..., L, D), (..., S, D) and (..., S, E)."""
    given = dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    q, k, v = (run.states(given[name]) for name in _ARGUMENTS[:3])
    if not all(isinstance(s, State) and s.value.dim() >= 2 for s in (q, k, v)):
        return run.barrier(node)
    mask = run.states(given.get("attn_mask"))
    if given.get("enable_gqa"):
        k, v = (_repeated(s, q.value.shape[-3] // s.value.shape[-3]) for s in (k, v))
    terms = ["abcdefgh"[10 - s.value.dim() :] for s in (q, k, v)]
    lead = max(terms, key=len)
    scores = product(run, node, q, k, terms[0] + "qz", terms[1] + "kz", lead + "qk", shifts=True)
    if scores is None:
        return run.barrier(node)
    if isinstance(mask, State):
        scores = beside(run, node, scores, mask)
    if given.get("scale") is None and (dims := grid_dims(q.labels)) and q.value.dim() - 1 in dims:
        heads = [d for d in dims if d != q.value.dim() - 1]
        rows = slices(q.labels, heads) if heads else rectangle(q.labels, dims).unsqueeze(0)
        run.scaled.append(Scaled(node, q.value.shape[-1], rows))
    certain = not run.training and not given.get("dropout_p") and _open(mask, given.get("attn_mask"))
    nothing = filled(scores.value.shape, torch.nan)
    weights = State(scores.labels, nothing, -1 if certain else None)
    result = product(run, node, weights, v, lead + "qk", terms[2] + "kx", lead + "qx")
    return run.barrier(node) if result is None else result


def fixed_attention(run: Interpreter, node: fx.Node) -> object:
    """Attention whose heads are written into the forward keeps all of its units."""
    run.held_back = True
    return run.barrier(node)


def _repeated(state: State, times: int) -> State:
    return State(state.labels.repeat_interleave(times, -3), state.value.repeat_interleave(times, -3))


def _open(mask: object, node: object) -> bool:
    """Does every row of the mask surely let something through?"""
    if not isinstance(mask, State) or not isinstance(node, fx.Node):
        return True
    lets = mask.value != 0 if node.meta["val"].dtype == torch.bool else mask.value > -torch.inf
    return not bool(mask.value.isnan().any()) and bool(lets.any(-1).all())


def softmax(run: Interpreter, node: fx.Node, name: str, first: State) -> object:
    """Along positions: units stay where they are, entries sum to one. Along units: all of them matter."""
    dim = run.values(node.args[1] if len(node.args) > 1 else node.kwargs["dim"]) % first.value.dim()
    if dim in varying(first.labels):
        return run.barrier(node)
    value = torch.softmax(first.value, dim)
    if name in ("log_softmax", "_log_softmax"):
        return State(first.labels, torch.log_softmax(first.value, dim))
    return State(first.labels, value, dim - first.value.dim())


def mask_copies(node: fx.Node) -> int | None:
    """The dimension along which an `expand` copies a mask for each head, if that is what it does."""
    if packet(node.target) != "expand" or not _masks(node):
        return None
    source, made = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    ahead = made.dim() - source.dim()
    asked = list(node.args[1])  # type: ignore[arg-type]
    for d in range(1, made.dim()):  # the first is the batch
        if isinstance(asked[d], int) and asked[d] > 1 and (d < ahead or source.shape[d - ahead] == 1):
            return d
    return None


def _masks(node: fx.Node) -> bool:
    """Is the result a mask wherever it is read?"""
    for user in node.users:
        name = packet(user.target).rstrip("_")
        at = [i for i, arg in enumerate(user.args) if arg is node]
        if name in MOVES or name in CASTS:
            if not _masks(user):
                return False
        elif (name, at) not in _MASKED and not (name == _ATTENTION and user.kwargs.get("attn_mask") is node and not at):
            return False
    return True


def choose(run: Interpreter, node: fx.Node, name: str) -> object:
    """`where` and `masked_fill`: a mask picks between units and something without."""
    parts = run.states(node.args)
    mask, first, second = parts if name == "where" else (parts[1], parts[0], parts[2])
    first, second = (x if isinstance(x, State) else known(torch.tensor(float(x))) for x in (first, second))
    if not isinstance(mask, State):
        return found(run, node)
    carrier, other = (first, second) if carries(first.labels) else (second, first)
    if carries(other.labels) or carries(run.of_layers(mask.labels)) or not carries(carrier.labels):
        return found(run, node)
    shape = torch.broadcast_shapes(mask.value.shape, first.value.shape, second.value.shape)
    whole = State(carrier.labels.expand(shape), carrier.value.expand(shape))
    for meets in (mask, other):
        beside(run, node, whole, meets)
    yes, no = (first, second) if name == "where" else (second, first)
    held, here, there = once(mask.value), once(yes.value), once(no.value)
    value = torch.where(held.isnan(), torch.nan, torch.where(held != 0, here, there))
    return State(whole.labels, value.expand(shape))
