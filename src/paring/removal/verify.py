"""Is the function still the same? Old and new network, side by side, on copies.

Inputs: the example itself (its first rows), random inputs like it with batches of 1, 2 and 3, and images, volumes and
sequences of another size where the network takes them. In float64 (the plan applied to a float64 copy, so that only the
mathematics is checked) outputs must agree, if need be with what the forward computes in float32 by name in float64 as well; in
float32 up to rounding; `compare` has the tolerances. Networks of many parameters and large images get fewer rows, vast ones
fewer trials; large images are compared in float64 at a smaller size, where the network
takes one. Running statistics and random states of the networks and of the process are left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.autocast import plainly
from paring.analysis.capture import untouched_random
from paring.core import Example, Inputs, Refusal
from paring.removal.apply import apply
from paring.removal.graph_net import OtherSizes
from paring.removal.plan import ShrinkPlan
from paring.removal.streamed import sharing, streamed
from paring.removal.tolerances import EXACT, as_type, differs, gap, in_type, one_path, refuse_nan
from paring.removal.widened import widened

HEAVY, VAST = 10**7, 5 * 10**7  # parameters of a network: fewer rows; no copy of it in float64
LARGE = 2**15  # entries of one example
ROWS = 8
Make = Callable[[nn.Module], nn.Module]


@alone()
def verify(
    net: nn.Module,
    plan: ShrinkPlan,
    example: Example,
    *,
    train: bool = False,
    make: Make | None = None,
    others: Sequence[Inputs] = (),
) -> Refusal | None:
    """None when `plan` leaves the function of `net` alone; else what differs.

    train: check train mode as well, with dropout modules off, and with the modules that are in eval mode now (frozen norms)
    left so where `net` itself is in train mode; where the network draws other noise, only that the smaller one runs.
    make: how to shrink a copy of the network, of any type; the default is to apply the plan.
    others: inputs of other sizes, for what `make` makes; a graph form may refuse them, but not compute something else.

    Raises:
        ValueError: a weight is NaN, or the network's own output on the example; see `refuse_nan`.
    """
    inputs = Inputs.of(example)
    parameters = sum(p.numel() for p in net.parameters())
    trials = _Trials.of(inputs, parameters > HEAVY, make is None, others)
    with untouched_random(), torch.no_grad(), one_path(), plainly():
        if make is None and parameters > VAST and not trials.large:
            try:
                exact, rounded = _shared(net, plan)
                return _judge(net, exact, rounded, replace(trials, vast=True), train)
            except _Unsuited:
                pass
        exact, rounded = (_copies(net, plan, dtype, make) for dtype in (torch.float64, torch.float32))
        return _judge(net, exact, rounded, trials, train)


@dataclass(frozen=True)
class _Trials:
    """What networks are compared on.

    Attributes:
        shown: the example's first rows.
        randoms, lengths, other_size: random inputs: of other batches, lengths, sizes of images.
        large: the example is.
        modules: the networks consist of the user's modules.
        vast: the network is: the example is compared in float64, and one further trial in float32, no more.
    """

    shown: Inputs
    randoms: list[Inputs]
    lengths: list[Inputs]
    other_size: Inputs | None
    large: bool
    modules: bool
    vast: bool = False

    @classmethod
    def of(cls, inputs: Inputs, heavy: bool, modules: bool, others: Sequence[Inputs]) -> _Trials:
        large = _entries(inputs) > LARGE
        heavy = heavy or large
        images = any(len(shape) == 4 for shape in inputs.shapes)
        return cls(
            _first(inputs, 2 if heavy else ROWS),
            [_random_like(inputs, n) for n in ((1,) if heavy else (1, 2, 3))],
            _other_lengths(inputs) if modules else list(others),
            _random_like(inputs, 3, _other_size) if images and modules else None,
            large,
            modules,
        )

    def turns(self, wide: bool) -> list[tuple[Inputs, bool, bool]]:
        """Inputs, and whether to compare on them in float64 and in float32. wide: in float64 even if they are large."""
        if self.vast:
            others = [(trial, False, True) for trial in (*self.lengths, *self.randoms, self.shown)]
            return [(self.shown, True, False), *others]
        return [(trial, wide or not self.large, True) for trial in (self.shown, *self.randoms, *self.lengths)]


class _NotTaken(Refusal):
    """A network in graph form does not take inputs of these sizes."""


class _Unsuited(Exception):
    """The network does not run with parameters that are cast when its parts are called."""


Pair = tuple[nn.Module, nn.Module]
"""The old network and the new one."""


def _judge(net: nn.Module, exact: Pair, rounded: Pair, trials: _Trials, train: bool) -> Refusal | None:
    shown, other_size = trials.shown, trials.other_size
    for mode in (False, True) if train else (False,):
        for part in (*exact, *rounded):
            _enter(part, net, mode)
        where = f"in {'train' if mode else 'eval'} mode"
        if mode:
            for part in (*exact, *rounded) if trials.modules else ():  # a graph's dropouts are no modules
                _without_dropout(part)
            if _noisy(rounded[0], _cast(shown, torch.float32)):
                if failure := _fails(rounded, _cast(shown, torch.float32)):
                    return Refusal(f"{failure} {where}")
                continue
        seen = other_size is not None and _compare(exact, rounded, other_size, True)
        if isinstance(seen, Refusal):
            return Refusal(f"{seen} {where} on inputs of shape {other_size}")
        compared = 0
        for trial, wide, narrow in trials.turns(seen is False):
            free = any(trial is other for other in trials.lengths)
            seen = _compare(exact, rounded, trial, wide, named=trial is shown and not mode, narrow=narrow, free=free)
            if seen is False and trial is shown:
                if trials.vast:
                    raise _Unsuited
                return Refusal(f"the network refuses the example itself {where}")
            if isinstance(seen, Refusal):
                return Refusal(f"{seen} {where} on inputs of shape {trial}")
            compared += seen
            if trials.vast and compared == 2:
                break
    return None


def _compare(
    exact: Pair,
    rounded: Pair,
    trial: Inputs,
    wide: bool,
    *,
    named: bool = False,
    narrow: bool = True,
    free: bool = False,
) -> Refusal | bool:
    """What differs, or whether there was something to compare: False when the old network refuses this input.

    wide: compare in float64. named: say where a NaN comes from. narrow: compare in float32. free: the new network may refuse
    its sizes, too.
    """
    doubles = _cast(trial, torch.float64)
    truth = _outputs(exact[0], doubles) if wide else None
    if isinstance(truth, list):
        if named:
            refuse_nan(exact[0], truth)
        found = _outputs(exact[1], doubles)
        if isinstance(found, _NotTaken) and free:
            return False
        if isinstance(found, Refusal):
            return Refusal(f"the smaller network fails with {found}")
        if problem := differs(truth, found, torch.float64):
            with widened():  # rounding to float32 that the forward asks for is no difference
                truth, found = (_outputs(net, doubles) for net in exact)
            if isinstance(truth, Refusal) or isinstance(found, Refusal) or differs(truth, found, torch.float64):
                return problem
    if not narrow:
        return isinstance(truth, list)
    singles = _cast(trial, torch.float32)
    before = _outputs(rounded[0], singles)
    if isinstance(before, list):
        if named and truth is None:  # a network may overflow in float32 alone, and be compared in float64
            refuse_nan(rounded[0], before)
        after = _outputs(rounded[1], singles)
        if isinstance(after, _NotTaken) and free:
            return False
        if isinstance(after, Refusal):
            return Refusal(f"the smaller network fails with {after}")

        def rounding() -> float:
            true = _outputs(exact[0], doubles) if truth is None else truth
            return gap(true, before) if isinstance(true, list) else 0.0

        if problem := differs(before, after, torch.float32, rounding):
            return problem
    return isinstance(truth, list) or isinstance(before, list)


def _enter(part: nn.Module, net: nn.Module, train: bool) -> None:
    """Train or eval mode; where `net` is in train mode itself, its modules that are in eval mode (frozen norms) stay so."""
    part.train(train)
    if train and net.training:
        modes = {path: module.training for path, module in net.named_modules()}
        for path, module in part.named_modules():
            module.training = modes.get(path, module.training)


def _without_dropout(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()


def _fails(pair: tuple[nn.Module, nn.Module], inputs: Inputs) -> Refusal | None:
    """What the smaller network says, or "outputs of other shapes", where the old one runs; random outputs say no more."""
    before, after = (_outputs(net, inputs) for net in pair)
    if isinstance(before, Refusal):
        return None
    if isinstance(after, Refusal):
        return Refusal(f"the smaller network fails with {after}")
    return None if [t.shape for t in before] == [t.shape for t in after] else Refusal("outputs have other shapes")


def _shared(net: nn.Module, plan: ShrinkPlan) -> tuple[Pair, Pair]:
    """The same as two calls of `_copies`, without holding the network in float64: its parts are cast when they are called.

    What the plan adds to is float64 until all is cut, as it is there.
    """
    added = [*plan.folds, *plan.scales]
    touched = {*(one.name for one in added), *(merge.name for merge in plan.merges)}
    new = sharing(net, touched, torch.float64)
    for one in added:
        path, _, leaf = one.name.rpartition(".")
        module = new.get_submodule(path)
        if getattr(module, leaf) is None:
            module.register_parameter(leaf, nn.Parameter(torch.zeros_like(one.amount, dtype=torch.float64)))
    new = apply(new, plan)
    exact, rounded = (
        (streamed(sharing(net), dtype), streamed(sharing(new, touched, dtype), dtype))
        for dtype in (torch.float64, torch.float32)
    )
    return exact, rounded


def _copies(net: nn.Module, plan: ShrinkPlan, dtype: torch.dtype, make: Make | None) -> tuple[nn.Module, nn.Module]:
    old = in_type(copy.deepcopy(net), dtype)
    return old, apply(copy.deepcopy(old), plan) if make is None else make(old)


def _outputs(net: nn.Module, inputs: Inputs, seed: int = 0) -> list[Tensor] | Refusal:
    """All output tensors, or the message of the error. seed: of the noise that some networks draw; with one, theirs is the same."""
    torch.manual_seed(seed)
    try:
        out = inputs.call(net)
    except OtherSizes as error:
        return _NotTaken(str(error))
    except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError) as error:
        return Refusal(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    if not tensors:
        raise ValueError(
            f"{type(net).__name__} returns no tensor to compare; let forward return tensors, or verify=False"
        )
    return tensors


def _random_like(inputs: Inputs, batch: int, resize: Callable[[Tensor], tuple[int, ...]] | None = None) -> Inputs:
    """Inputs like the example: floats with its mean and spread, others drawn from its entries."""
    generator = torch.Generator().manual_seed(batch)
    size = inputs.batch

    def draw(leaf: Tensor) -> Tensor:
        if leaf.numel() == 0:
            return leaf
        sizes = leaf.shape if resize is None else resize(leaf)
        shape = sizes if size is None else (batch, *sizes[1:])
        if not leaf.is_floating_point():
            picks = torch.randint(leaf.numel(), tuple(shape), generator=generator)
            return leaf.detach().flatten()[picks.to(leaf.device)]
        noise = torch.randn(tuple(shape), generator=generator).to(leaf.device, leaf.dtype)
        spread = leaf.detach().std() if leaf.numel() > 1 else torch.ones_like(leaf).mean()
        return noise * torch.where(spread > 0, spread, 1.0) + leaf.detach().mean()

    return inputs.map(draw)


def _other_size(leaf: Tensor) -> tuple[int, ...]:
    """The shape of images of another size: a bit larger, or much smaller where they are large."""
    if leaf.dim() != 4 or not leaf.is_floating_point():
        return tuple(leaf.shape)
    sizes = (max(32, -(-n // 128) * 32) if min(leaf.shape[2:]) >= 96 else n + 8 for n in leaf.shape[2:])
    return (*leaf.shape[:2], *sizes)


def _other_lengths(inputs: Inputs) -> list[Inputs]:
    """Inputs of other lengths along one dimension that is no batch, image or volume: sequences, sets, tokens.

    All tensors that have this length there get the other one, which is shorter, so that no position lies beyond a table
    of positions (on a GPU that ends the process). Networks that refuse it are not compared.
    """
    leaves = [t for t in inputs.tensors if t.dim() in (2, 3)]
    places = sorted({(dim, t.shape[dim]) for t in leaves for dim in range(1, t.dim()) if t.shape[dim] > 1})
    found = []
    for dim, length in places[:4]:

        def other(leaf: Tensor, dim: int = dim, length: int = length) -> tuple[int, ...]:
            fits = leaf.dim() in (2, 3) and leaf.dim() > dim and leaf.shape[dim] == length
            return tuple(n - max(1, n // 4) if fits and d == dim else n for d, n in enumerate(leaf.shape))

        found.append(_random_like(inputs, 2, other))
    volumes = [t for t in inputs.tensors if t.dim() == 5]
    if volumes and max(t.numel() // len(t) for t in volumes) <= LARGE:
        found.append(
            _random_like(
                inputs, 2, lambda t: (*t.shape[:2], *(n + 2 for n in t.shape[2:])) if t.dim() == 5 else tuple(t.shape)
            )
        )
    return found


def _first(inputs: Inputs, rows: int) -> Inputs:
    """The first examples of a batch."""
    return inputs if inputs.batch is None else inputs.map(lambda tensor: tensor[:rows])


def _entries(inputs: Inputs) -> int:
    """Entries of one example."""
    return sum(tensor.numel() for tensor in inputs.tensors) // (inputs.batch or 1)


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return inputs.map(lambda tensor: as_type(tensor, dtype))


def _noisy(net: nn.Module, inputs: Inputs) -> bool:
    """Does the network draw random numbers in this mode? Then two runs differ."""
    first, second = _outputs(net, inputs), _outputs(net, inputs, 1)
    return isinstance(first, Refusal) or isinstance(second, Refusal) or gap(first, second) > EXACT
