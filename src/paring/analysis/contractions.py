"""Products of two activations: matmul, bmm, baddbmm, einsum, and what scaled dot product attention is made of.

Every product is written with a letter for each dimension: those of both operands and the result (batch), of both
operands alone (contracted), of one operand and the result (free). Units along a contracted dimension meet in pairs; a
pair matters unless one of the two is zero. Units along a free dimension pass through. Along a batch dimension slices
meet slices: they live or go together, and where pairs end there, each slice is a unit of its own, without a weight.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx

from paring.analysis.grids import Contraction, SliceTie
from paring.analysis.labels import distinct_pairs, varying
from paring.analysis.layer_rules import matrix
from paring.analysis.loose import shrinks
from paring.analysis.repeats import carries, either, filled, once, shortened, unlabelled
from paring.analysis.slicewise import slicewise
from paring.analysis.stacked_weights import stacked
from paring.analysis.state import State, module_path, packet, place, shape_of
from paring.analysis.work import Product

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Contract(Protocol):
    """How two operands are contracted: `product`, or `fixed_product` where sizes stay as they are."""

    def __call__(
        self, run: Interpreter, node: fx.Node, a: State, b: State, one: str, two: str, out: str, /
    ) -> State | None:
        """The contraction one,two->out; None where it is not understood."""


def matmul(run: Interpreter, node: fx.Node, product: Contract) -> object:
    """(..., n, k) times (..., k, m), batch dimensions broadcast; a layer's where it owns the second."""
    if (layer := matrix(run, node, node.args[0], node.args[1], None) or _with_weight(run, node)) is not None:
        return layer
    a, b = run.states(node.args[0]), run.states(node.args[1])
    if not (isinstance(a, State) and isinstance(b, State)) or min(a.value.dim(), b.value.dim()) < 2:
        return slicewise(run, node)
    batch = max(a.value.dim(), b.value.dim()) - 2
    lead = _LETTERS[:batch]
    one, two = lead[batch - a.value.dim() + 2 :] + "yz", lead[batch - b.value.dim() + 2 :] + "zx"
    return product(run, node, a, b, one, two, lead + "yx") or run.barrier(node)


def _with_weight(run: Interpreter, node: fx.Node) -> object:
    """The product of an activation and a parameter; None where it is none."""
    ranks = [len(shape_of(arg.meta["val"])) for arg in node.args[:2] if isinstance(arg, fx.Node)]
    if len(ranks) != 2 or min(ranks) < 2:
        return None
    lead = _LETTERS[: max(ranks) - 2]
    one, two = lead[max(ranks) - ranks[0] :] + "yz", lead[max(ranks) - ranks[1] :] + "zx"
    return stacked(run, node, 1, two, one, lead + "yx") or stacked(run, node, 0, one, two, lead + "yx")


def baddbmm(run: Interpreter, node: fx.Node, product: Contract) -> object:
    """Input + batch of matrix products, input a mask."""
    added, a, b = (run.states(arg) for arg in node.args[:3])
    if not all(isinstance(s, State) for s in (added, a, b)):
        return run.barrier(node)
    result = product(run, node, a, b, "ayz", "azx", "ayx")
    return run.barrier(node) if result is None else beside(run, node, result, added)


def einsum(run: Interpreter, node: fx.Node, product: Contract) -> object:
    """Two operands, every letter once in each, nothing summed out of one operand alone; others are tried."""
    equation, parts = str(node.args[0]).replace(" ", ""), run.states(node.args[1])
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    if (
        not arrow
        or len(terms) != 2
        or not inputs.replace(",", "").isalpha()
        or not all(isinstance(p, State) for p in parts)
    ):
        return slicewise(run, node)
    (one, two), (a, b) = terms, parts
    if layer := stacked(run, node, 1, two, one, out) or stacked(run, node, 0, one, two, out):
        return layer
    known = all(letter in out or (letter in one and letter in two) for letter in one + two)
    if not known or any(len(set(term)) != len(term) for term in (one, two, out)):
        return slicewise(run, node)
    return product(run, node, a, b, one, two, out) or run.barrier(node)


def beside(run: Interpreter, node: fx.Node, first: State, other: State) -> State:
    """`first` after a mask was added: copies in the mask go with the units beside them; where it varies otherwise, they stay."""
    shape = first.value.shape
    if shrinks(run, node, other, first.labels):
        return State(first.labels, filled(shape, torch.nan))
    labels = other.labels.expand(shape)
    copies, ways = set(varying(labels)), set(varying(first.labels))
    if copies and not copies <= ways:
        run.keep(other.labels, f"copies of a mask, not one for each unit, in {place(node)}")
        copies = set()
    if copies:
        run.tie_slices([(first.labels, sorted(copies)), (labels, sorted(copies))])
    spanned = {
        d for d in range(len(shape)) if d - len(shape) >= -other.value.dim() and other.value.shape[d - len(shape)] > 1
    }
    run.pin(first.labels, spanned - copies, f"meets a tensor that cannot shrink in {place(node)}")
    return State(first.labels, filled(shape, torch.nan))


def fixed_product(run: Interpreter, node: fx.Node, a: State, b: State, one: str, two: str, out: str) -> State | None:
    """The contraction one,two->out of operands without units; None for others, whose sizes would have to change."""
    a, b, ways, value = _operands(a, b, one, two, out)[:4]
    run.held_back |= bool(ways[0] | ways[1])
    return _without_units(a, b, ways, value)


def product(
    run: Interpreter, node: fx.Node, a: State, b: State, one: str, two: str, out: str, *, shifts: bool = False
) -> State | None:
    """The contraction one,two->out; None where it is not understood.

    shifts: a constant added to all of a row of the result does not matter (a softmax follows), so that pairs with a
    constant unit of b do not matter either.
    """
    a, b, (ways_a, ways_b), value, (spans_a, spans_b), sizes = _operands(a, b, one, two, out)
    contracted = set(one) & set(two) - set(out)
    if not ways_a and not ways_b:
        return _without_units(a, b, (ways_a, ways_b), value)
    reason = f"meets a tensor that cannot shrink in {place(node)}"
    if ways_b and not ways_b & contracted and ways_a and ways_a <= contracted & spans_b:
        a, ways_a = _kept(run, a, reason), set()
    elif ways_a and not ways_a & contracted and ways_b and ways_b <= contracted & spans_a:
        b, ways_b = _kept(run, b, reason), set()
    pairs_a, pairs_b = ways_a & contracted, ways_b & contracted
    free_a, free_b = ways_a - set(two), ways_b - set(one)
    if (free_a and free_b) or ((pairs_a or pairs_b) and (free_a or free_b)):
        return None
    run.pin(a.labels, {one.index(x) for x in (ways_a & spans_b) - ways_b}, reason)
    run.pin(b.labels, {two.index(x) for x in (ways_b & spans_a) - ways_a}, reason)
    shared = [x for x in out if x in ways_a & ways_b]
    if shared:
        run.tie_slices([(a.labels, [one.index(x) for x in shared]), (b.labels, [two.index(x) for x in shared])])
    if pairs_a or pairs_b:
        labels = _pairs(run, node, a, b, one, two, out, shifts)
    elif free_a or free_b or not (ways_a and ways_b):
        carrier, term, other, letters = (a, one, b, two) if free_a or not ways_b else (b, two, a, one)
        labels = _spread(carrier.labels, term, out, sizes)
        _passing(run, node, labels, out, other, letters, sizes)
    else:
        left, right = _spread(a.labels, one, out, sizes), _spread(b.labels, two, out, sizes)
        run.couple(left, right, f"coupled by a product in {place(node)}")
        labels = either(left, right)
    _record(run, node, a, b, one, two, sizes, meets=bool(pairs_a or pairs_b))
    return State(labels, value)


def _kept(run: Interpreter, one: State, reason: str) -> State:
    """An operand whose units are summed with what has none, beside units of the other that pass through: they stay."""
    run.keep(one.labels, reason)
    return State(unlabelled(one.labels.shape), one.value, one.sums)


def _operands(
    a: State, b: State, one: str, two: str, out: str
) -> tuple[State, State, tuple[set[str], set[str]], Tensor, tuple[set[str], set[str]], dict[str, int]]:
    """Both operands expanded, the letters their units lie along, the product's value, the letters they have, all sizes."""
    sizes: dict[str, int] = {}
    for state, term in ((a, one), (b, two)):
        for letter, size in zip(term, state.value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    a, ways_a, spans_a = _side(a, one, sizes)
    b, ways_b, spans_b = _side(b, two, sizes)
    sums = next((t[s.sums] for s, t in ((a, one), (b, two)) if s.sums is not None), "")
    return a, b, (ways_a, ways_b), _value(a, b, one, two, out, sums), (spans_a, spans_b), sizes


def _without_units(a: State, b: State, ways: tuple[set[str], set[str]], value: Tensor) -> State | None:
    """The product of operands without units; None where there is one, and be it alone."""
    if any(ways) or carries(a.labels) or carries(b.labels):
        return None
    return State(unlabelled(value.shape), value)


def _record(
    run: Interpreter, node: fx.Node, a: State, b: State, one: str, two: str, sizes: dict[str, int], *, meets: bool
) -> None:
    """What the product costs: a cell for every combination of units, found along the letters that they lie along."""
    ways = {one[d] for d in varying(a.labels)} | {two[d] for d in varying(b.labels)}
    lying = [x for x in sizes if x in ways]
    full = torch.Size([sizes[x] for x in lying])
    pair = torch.stack([_gather(s, t, lying, [], full, sizes)[0].flatten() for s, t in ((a, one), (b, two))])
    (left, right), times = torch.unique(run.of_layers(pair), dim=1, return_counts=True)  # the batch may lie among heads
    each = run.per_example(node, int(times[0]) * prod(n for x, n in sizes.items() if x not in ways))
    name = f"{node.name}.{len(run.products)}"
    run.products.append(Product(name, module_path(node), packet(node.target), each, each, left, right, meets))


def _side(state: State, term: str, sizes: dict[str, int]) -> tuple[State, set[str], set[str]]:
    """The operand with broadcast dimensions expanded, the letters its units lie along, the letters it really has."""
    shape = [sizes[letter] for letter in term]
    spans = {letter for letter, size in zip(term, state.value.shape, strict=True) if size > 1}
    whole = State(state.labels.expand(shape), state.value.expand(shape), state.sums)
    return whole, {term[d] for d in varying(whole.labels)}, spans


def _value(a: State, b: State, one: str, two: str, out: str, sums: str) -> Tensor:
    equation = f"{one},{two}->{out}"
    shape = torch.einsum(
        equation, torch.empty_like(a.value, device="meta"), torch.empty_like(b.value, device="meta")
    ).shape
    value = filled(shape, torch.nan)
    if not all(bool(once(s.value).isnan().all()) for s in (a, b)):
        dynamic_a, dynamic_b = a.value.isnan(), b.value.isnan()
        parts = [s.value.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf) for s in (a, b)]
        some_a, some_b = dynamic_a | (a.value != 0), dynamic_b | (b.value != 0)
        moving = torch.einsum(equation, dynamic_a.float(), some_b.float()) + torch.einsum(
            equation, some_a.float(), dynamic_b.float()
        )
        value = torch.einsum(equation, *parts).masked_fill(moving > 0, torch.nan)
    if sums and {x for x in one if x in two and x not in out} == {sums}:
        other, term = (b, two) if a.sums is not None else (a, one)
        at = term.index(sums)
        first = other.value.select(at, 0)
        same = torch.isclose(other.value, first.unsqueeze(at), rtol=1e-12, atol=0.0).all(at)
        mean = _align(first.masked_fill(~same, torch.nan), term.replace(sums, ""), out, value.shape)
        value = torch.where(value.isnan(), mean, value)
    return value


def _align(tensor: Tensor, term: str, out: str, shape: torch.Size) -> Tensor:
    """A tensor with these letters, expanded to those of the result."""
    order = sorted(range(len(term)), key=lambda d: out.index(term[d]))
    there = iter(tensor.permute(order).shape)
    return tensor.permute(order).reshape([next(there) if x in term else 1 for x in out]).expand(shape)


def _spread(labels: Tensor, term: str, out: str, sizes: dict[str, int]) -> Tensor:
    """Labels with the dimensions of the result; they are alike along those that it does not have."""
    for d, letter in reversed(list(enumerate(term))):
        labels = labels if letter in out else labels.select(d, 0)
    return _align(labels, "".join(x for x in term if x in out), out, torch.Size(sizes[x] for x in out))


def _pairs(run: Interpreter, node: fx.Node, a: State, b: State, one: str, two: str, out: str, shifts: bool) -> Tensor:
    """Couple the pairs; the labels of the result: one unit for each slice along the batch dimensions."""
    ways = {one[d] for d in varying(a.labels)} | {two[d] for d in varying(b.labels)}
    sizes = {x: n for t, s in ((one, a), (two, b)) for x, n in zip(t, s.labels.shape, strict=True)}
    rows = [x for x in out if x in ways]
    pairs = [x for x in one if x in two and x not in out]
    full = torch.Size([sizes[x] for x in (*rows, *pairs)])
    sides = [_gather(s, t, rows, pairs, full, sizes) for s, t in ((a, one), (b, two))]
    (left, known_a), (right, known_b) = sides
    run.couple(left, right, f"coupled in pairs by a product in {place(node)}")
    zero_a, zero_b = known_a == 0, known_b == 0
    idle = zero_b | ~known_b.isnan() if shifts else zero_b
    count = full[: len(rows)].numel()
    labels = unlabelled([sizes[x] for x in out])
    units = torch.full((count,), -1)
    if rows:
        units = run.new_units(f"{node.name}: slices", count)
        shape = [sizes[x] if x in rows else 1 for x in out]
        labels = units.view(shape).expand(labels.shape)
    run.slice_ties.append(SliceTie((left.reshape(count, -1), right.reshape(count, -1), units[:, None])))
    run.contractions.append(
        Contraction(
            node=node,
            units=units,
            columns=torch.cat([left.reshape(count, -1), right.reshape(count, -1)], 1),
            constants=torch.cat([known_a.reshape(count, -1), known_b.reshape(count, -1)], 1),
            used=~torch.cat([idle.reshape(count, -1), zero_a.reshape(count, -1)], 1),
            free=torch.cat([zero_a.reshape(count, -1), idle.reshape(count, -1)], 1),
        )
    )
    return labels


def _gather(
    state: State, term: str, rows: list[str], pairs: list[str], full: torch.Size, sizes: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Labels and constants (NaN none) with the row and pair letters only, (rows, pairs)."""
    kept = [x for x in (*rows, *pairs) if x in term]
    rest = [d for d, x in enumerate(term) if x not in kept]
    order = [term.index(x) for x in kept]
    shape = [sizes[x] if x in term else 1 for x in (*rows, *pairs)]
    stored = once(state.value, *order)
    value = stored.permute(*order, *rest).reshape([*(sizes[x] for x in kept), -1])
    first = value[..., 0]
    same = torch.isclose(value, first.unsqueeze(-1), rtol=1e-12, atol=0.0).all(-1)
    labels = state.labels
    for d in rest:
        labels = labels.narrow(d, 0, 1)
    labels = labels.permute(*order, *rest).reshape([sizes[x] for x in kept])
    known = torch.where(same, first, torch.full_like(first, torch.nan))
    return labels.reshape(shape).expand(full).clone(), known.reshape(shape).expand(full).clone()


def _passing(
    run: Interpreter, node: fx.Node, labels: Tensor, out: str, other: State, letters: str, sizes: dict[str, int]
) -> None:
    """Units of one operand pass through; each of them needs the slice of the other operand that it meets."""
    if not varying(other.labels):
        return
    met = _spread(other.labels, letters, out, sizes)
    both = torch.stack([part.flatten() for part in shortened(labels, met)])
    seen = distinct_pairs(both[:, (both[0] >= 0) & (both[1] >= 0)])
    dynamic = torch.full((seen.shape[1], 1), torch.nan, dtype=torch.float64)
    used = torch.ones(seen.shape[1], 1, dtype=torch.bool)
    run.contractions.append(Contraction(node, seen[0], seen[1][:, None], dynamic, used, ~used))
