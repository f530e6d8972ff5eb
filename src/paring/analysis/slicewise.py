"""Operations that act on each slice alone, found out by trying them.

An operation f acts on the slices along dimension d alone when leaving out slices commutes with it: f(x without some
slices along d) is f(x) without the slices that they became, for slices left out at random. That is what removal needs of
it, so that is what is tried: on random numbers of several sizes (float64, the shapes of the traced example; operands that
are the same for every input keep their values), with the first unit, the last one and about half of them left out. Roll
and norm over positions, sorting, sampling, unfolding pass; a softmax or a cumulative sum over units does not. Operands of
one layout that have to shrink together couple their units.

A slice may become r slices side by side (`unfold`), every nth one, or a share of one (`fold`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis.labels import uniform, varying
from paring.analysis.memory import base_name
from paring.analysis.repeats import filled, unlabelled
from paring.analysis.state import State, place

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

LARGEST = 2**26  # entries of what is tried
_SIZES = (1.0, 1e-3, 30.0)  # of the random numbers: what mixes little mixes more somewhere
_CLOSE = 1e-9
_REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError)
_PICKS = ("index", "index_select", "gather")
_OFF = ("device", "layout", "pin_memory")


@dataclass
class _Operand:
    """A tensor among the arguments. dims: which its units lie along; box: their labels there."""

    at: int
    state: State
    dtype: torch.dtype
    dims: list[int]
    box: Tensor

    @property
    def lines(self) -> list[Tensor]:
        """Of every such dimension the labels of its slices, by their first entry."""
        return [self.box.movedim(k, 0).reshape(self.box.shape[k], -1)[:, 0].clone() for k in range(self.box.dim())]


@dataclass
class _Way:
    """Where slices go: of every result the dimension, and for each slice there the one that it comes from."""

    to: list[tuple[int, Tensor]]


class _Call:
    """One operation with its tensor operands replaced at will."""

    def __init__(self, run: Interpreter, node: fx.Node) -> None:
        target: Any = node.target
        self._target = target
        self._writes = bool(self._target._schema.is_mutable)
        leaves, self._spec = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda v: isinstance(v, fx.Node))
        self._leaves: list[object] = []
        self.operands: list[_Operand] = []
        self.odd = False
        for at, leaf in enumerate(leaves):
            held = run.states(leaf) if isinstance(leaf, fx.Node) else leaf
            self._leaves.append(held)
            if isinstance(held, State) and isinstance(leaf, fx.Node):
                dims = varying(held.labels)
                box = held.labels
                for d in {*range(box.dim())} - {*dims}:
                    box = box.narrow(d, 0, min(1, box.shape[d]))
                box = box.reshape([held.labels.shape[d] for d in dims])
                self.operands.append(_Operand(at, held, leaf.meta["val"].dtype, dims, box))
            elif isinstance(leaf, fx.Node) and not isinstance(held, int | float | bool):
                self.odd = True
        self.labelled = [o for o in self.operands if o.dims]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All results. Raises what the operation raises."""
        leaves = list(self._leaves)
        for operand, tensor in zip(self.operands, tensors, strict=True):
            leaves[operand.at] = tensor.clone() if self._writes else tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
        result = self._target(*args, **{k: v for k, v in kwargs.items() if k not in _OFF[1:]})
        found = pytree.tree_leaves(result)
        if not all(isinstance(one, Tensor) for one in found):
            raise TypeError("not all results are tensors")
        return found

    def random(self, size: float, seed: int) -> list[Tensor]:
        """Operands of random numbers; known ones without units as they are."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for operand in self.operands:
            value = operand.state.value
            if operand.dtype.is_complex:
                noise = torch.randn(value.shape, dtype=torch.complex128, generator=generator) * size
            elif operand.dtype.is_floating_point:
                noise = torch.randn(value.shape, dtype=torch.float64, generator=generator) * size
                noise = noise.abs() if seed == 1 else noise
            else:
                noise = torch.randint(2, value.shape, generator=generator).to(operand.dtype)
            if not operand.dims and not operand.dtype.is_complex:
                noise = torch.where(value.isnan(), noise, value.nan_to_num().to(noise.dtype))
            made.append(noise)
        return made

    def known(self) -> list[Tensor]:
        """What is known of the operands, ones elsewhere."""
        return [
            o.state.value.nan_to_num(1.0, posinf=torch.inf, neginf=-torch.inf).to(
                torch.float64 if o.dtype.is_floating_point else o.dtype
            )
            for o in self.operands
        ]


def slicewise(run: Interpreter, node: fx.Node) -> object:
    """The result where the operation acts on slices alone; the barrier where nothing of the kind is found."""
    call = _Call(run, node)
    if call.odd or not call.labelled or sum(o.state.value.numel() for o in call.operands) > LARGEST:
        return run.barrier(node)
    try:
        trials = [call.random(size, seed) for seed, size in enumerate(_SIZES)]
        wholes = [call(trial) for trial in trials]
    except _REFUSALS:
        return run.barrier(node)
    together, ways = _partners(call, trials, wholes)
    if not together:
        return run.barrier(node)
    for operand in call.labelled:
        if operand not in together:
            run.keep(operand.state.labels, f"read by {base_name(node)} in {place(node)}")
    first = together[0]
    lost = [d for d, way in zip(first.dims, ways, strict=True) if way is None]
    for operand in together:
        if lost:
            run.pin(operand.state.labels, set(lost), f"mixed by {base_name(node)} in {place(node)}")
        if operand is not first:
            run.couple(first.box, operand.box, f"coupled by {base_name(node)} in {place(node)}")
    return _result(node, call, together, ways, wholes[0])


def _partners(
    call: _Call, trials: list[list[Tensor]], wholes: list[list[Tensor]]
) -> tuple[list[_Operand], list[_Way | None]]:
    """Operands whose slices pass, alone or those of one layout together, and where they go; none where none do."""
    for operand in call.labelled:
        ways = _ways(call, [operand], trials, wholes)
        if any(ways):
            return [operand], ways
    first = call.labelled[0]
    alike = [o for o in call.labelled if o.box.shape == first.box.shape]
    if len(alike) > 1 and any(ways := _ways(call, alike, trials, wholes)):
        return alike, ways
    return [], []


def _ways(
    call: _Call, operands: list[_Operand], trials: list[list[Tensor]], wholes: list[list[Tensor]]
) -> list[_Way | None]:
    """For every dimension that units lie along, where its slices go; None where they are mixed."""
    return [_way(call, operands, k, trials, wholes) for k in range(operands[0].box.dim())]


def _way(
    call: _Call, operands: list[_Operand], k: int, trials: list[list[Tensor]], wholes: list[list[Tensor]]
) -> _Way | None:
    line = operands[0].lines[k]
    drops = _drops(line)
    found: list[tuple[int, Tensor]] | None = None
    for trial, whole, drop in zip(trials, wholes, drops, strict=True):
        keep = ~drop
        cut = list(trial)
        for operand in operands:
            at = call.operands.index(operand)
            cut[at] = trial[at].index_select(operand.dims[k], keep.nonzero().flatten())
        try:
            small = call(cut)
        except _REFUSALS:
            return None
        if found is None:
            found = [one for a, b in zip(whole, small, strict=True) if (one := _traced(a, b, line, keep)) is not None]
            if len(found) != len(whole):
                return None
        for (dim, source), a, b in zip(found, whole, small, strict=True):
            left = a.index_select(dim, keep[source].nonzero().flatten())
            if left.shape != b.shape or not _close(left, b):
                return None
    return None if found is None else _Way(found)


def _drops(line: Tensor) -> list[Tensor]:
    """Which slices are left out in each trial: those of the first unit, of the last one, of about half."""
    units = torch.tensor(list(dict.fromkeys(line[line >= 0].tolist())))
    half = units[torch.randperm(len(units), generator=torch.Generator().manual_seed(0))[: max(1, len(units) // 2)]]
    return [torch.isin(line, some) for some in (units[:1], units[-1:], half)]


def _traced(whole: Tensor, small: Tensor, line: Tensor, keep: Tensor) -> tuple[int, Tensor] | None:
    """The dimension of a result that shrank with the slices, and which slice each one there comes from."""
    if whole.dim() != small.dim():
        return None
    shrunk = [d for d in range(whole.dim()) if whole.shape[d] != small.shape[d]]
    if len(shrunk) != 1:
        return None
    dim = shrunk[0]
    for source in _sources(len(line), whole.shape[dim], line):
        kept = keep[source].nonzero().flatten()
        if len(kept) == small.shape[dim] and _close(whole.index_select(dim, kept), small):
            return dim, source
    return None


def _sources(before: int, after: int, line: Tensor) -> list[Tensor]:
    if after % before == 0:
        times = after // before
        return [torch.arange(after) // times, torch.arange(after) % before]
    if before % after == 0:
        rows = line.view(after, before // after)
        return [torch.arange(after) * (before // after)] if bool((rows == rows[:, :1]).all()) else []
    return []


def _close(a: Tensor, b: Tensor) -> bool:
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    size = torch.where(a.abs().isfinite(), a.abs(), 0.0).max() if a.numel() else torch.zeros(())
    return torch.allclose(a, b, rtol=_CLOSE, atol=_CLOSE * float(size), equal_nan=True)


def _result(
    node: fx.Node, call: _Call, together: list[_Operand], ways: list[_Way | None], outs: list[Tensor]
) -> object:
    """Labels and values of all results."""
    fixed = any(o not in together and bool(o.state.value.isnan().any()) for o in call.operands)
    values, first = None if fixed else _values(call), together[0]
    moves = [(k, way) for k, way in enumerate(ways) if way is not None]
    lost = [k for k, way in enumerate(ways) if way is None]

    def laid(box: Tensor, i: int) -> Tensor:
        """Something per slice of the operand, as it lies in result i."""
        for k, way in moves:
            box = box.index_select(k, way.to[i][1])
        order = sorted(moves, key=lambda move: move[1].to[i][0])
        sizes = [1] * outs[i].dim()
        for _, way in moves:
            sizes[way.to[i][0]] = outs[i].shape[way.to[i][0]]
        return box.permute(*(k for k, _ in order), *lost).reshape(sizes).expand(outs[i].shape)

    def narrowed(box: Tensor) -> Tensor:
        for k in lost:
            box = box.narrow(k, 0, 1)
        return box

    def any_lost(box: Tensor) -> Tensor:
        return box.any(tuple(lost), keepdim=True) if lost else box

    states: list[State] = []
    for i, out in enumerate(outs):
        labels = unlabelled(out.shape)
        unknown = torch.zeros((), dtype=torch.bool).expand(out.shape)
        for operand in together[::-1]:
            mine = laid(narrowed(operand.box), i)
            labels = torch.where(mine >= 0, mine, labels)
            unknown = unknown | laid(any_lost(_dynamic(operand)), i)
        value = filled(out.shape, torch.nan)
        if fixed and base_name(node) in _PICKS and len(first.dims) == len(moves) == 1:
            value = laid(uniform(first.state.value, first.dims[0]), i)  # whichever entries of a slice are picked
        if values is not None and not bool(unknown.all()):
            value = values[i].masked_fill(unknown, torch.nan)
        states.append(State(labels, value))
    return states[0] if isinstance(node.meta["val"], Tensor) else states


def _dynamic(operand: _Operand) -> Tensor:
    """Which slices, by dimension that units lie along, depend on the input somewhere."""
    rest = [d for d in range(operand.state.value.dim()) if d not in operand.dims]
    unknown = operand.state.value.isnan()
    return unknown.any(rest) if rest else unknown


def _values(call: _Call) -> list[Tensor] | None:
    """The results on what is known; a number that is not real is not known."""
    if any(o.dtype.is_complex for o in call.operands):
        return None
    try:
        return [_real(one) for one in call(call.known())]
    except _REFUSALS:
        return None


def _real(result: Tensor) -> Tensor:
    if result.is_complex():
        return result.real.double().masked_fill(result.imag != 0, torch.nan)
    return result.double()
