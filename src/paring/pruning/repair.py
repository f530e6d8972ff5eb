"""What is left takes over the work of what goes: least squares for the layers that read it.

A layer computes y = W x + b. When columns of x go, the others are weighted anew, so that y moves least on the calibration
batches (as in channel pruning by reconstruction, He et al. 2017, and the second-order rule of Hassibi and Stork 1993):

    W' = W C[:, R] (C[R, R] + damping · mean(diag C) · I)⁻¹        b' = b + (W - W') mean(x)

with C the covariance of x in the whole network, and R what stays. Layers without a bias use second moments in place of the
covariance. Where x lies along sequences or other positions, errors count relative to the length of y: some positions carry
activations hundreds of times as large as others (Sun et al. 2024, "Massive activations"), and the norms behind them take
no notice. Grouped convolutions, embeddings, frozen weights and layers that are not called (the last one of
`nn.MultiheadAttention`) are left as they are. Padding does not count (`paring.core.padding`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis.wiring import Layer
from paring.core.default_loss import Loss
from paring.core.padding import Padding, watched_padding
from paring.pruning.gated import GatedCopy

_COLUMNS = 6_144  # beyond that the moments take too much memory and time
_EXACT = 2_048  # up to that they are kept in float64
_ROWS = 2_048  # positions of a batch that are looked at
_ENOUGH = 8  # rows for each column
_LONGER = 8  # times as many batches as are judged on, at most, until there are enough
_SHORT = 1e-3  # of the median square of y: what a position counts like at least
DAMPING = 1e-3
POSITIONS_DAMPING = 0.1  # what was zero or rare at some positions is not, once other parts are cut


@dataclass
class Moments:
    """Second moments of what a layer reads, and its mean.

    Attributes:
        second: weighted sum of x xᵀ, (columns, columns).
        first: weighted sum of x, (columns,).
        total: sum of the weights.
        count: rows seen.
        relative: whether rows were weighted.
    """

    second: Tensor
    first: Tensor
    total: float = 0.0
    count: int = 0
    relative: bool = False

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """More rows, (n, columns), and what each counts, (n,)."""
        rows = rows.to(self.second)
        weighted = rows if weights is None else rows * weights.to(rows)[:, None]
        self.second += weighted.T @ rows
        self.first += weighted.sum(0)
        self.total += len(rows) if weights is None else float(weights.sum())
        self.count += len(rows)
        self.relative |= weights is not None

    @property
    def enough(self) -> bool:
        """Whether more rows would change little."""
        return self.count >= _ENOUGH * len(self.first)


class Repair:
    """A network in which the readers of what goes can be weighted anew, always from the weights that they had.

    Args:
        gated: the network, with all gates open.
        batches: to measure on what its layers read.
        loss: runs the network on a batch.
        fit: whether there are such readers at all; else all weights are left as they are.
        damping: share of the mean variance that is added to each variance; None: `DAMPING`, or `POSITIONS_DAMPING`.
        more: further batches, for layers that have seen few rows for their width; so many are taken as they need.
    """

    @torch.no_grad()
    def __init__(
        self,
        gated: GatedCopy,
        batches: Sequence[Any],
        loss: Loss,
        *,
        fit: bool = True,
        damping: float | None = None,
        more: Iterable[Any] = (),
    ) -> None:
        self.gated, self.fits, self.damping = gated, fit, damping
        self.original = copy.deepcopy(gated.net.state_dict())  # with the versions that some modules ask for
        self.moments: dict[str, Moments] = {}
        if fit:
            everything = torch.zeros(gated.units, dtype=torch.bool)
            readers = [name for name, stays in _columns(gated, everything) if not bool(stays.all())]
            with watched_padding(gated.net) as padding, _watched(gated, readers, padding) as self.moments:
                for batch in batches:
                    loss(gated.net, batch)
                for batch in islice(more, (_LONGER - 1) * len(batches)) if self._lacking() else ():
                    loss(gated.net, batch)
                    if not self._lacking():
                        break
        # a layer whose weight is read without calling it, as torch's attention does with its last one, was not seen
        self.moments = {name: seen for name, seen in self.moments.items() if seen.count}

    def _lacking(self) -> bool:
        return not all(seen.enough for seen in self.moments.values() if seen.count)

    @property
    def dampings(self) -> tuple[float, ...]:
        """What is worth trying for `positions`."""
        both = self.damping is None and any(seen.relative for seen in self.moments.values())
        return (DAMPING, POSITIONS_DAMPING) if both else (POSITIONS_DAMPING,)

    def undo(self) -> None:
        """All weights and statistics are those of the beginning; the gates stay as they are."""
        self.gated.net.load_state_dict(self.original)

    @torch.no_grad()
    def apply(self, mask: Tensor, *, fit: bool = True, positions: float = POSITIONS_DAMPING) -> int:
        """Close what is not in `mask`, (units,), and weigh its readers anew; what both had before is undone.

        Args:
            mask: True stays.
            fit: whether readers are weighted anew.
            positions: damping of those that read positions, where none was given for all.

        Returns:
            How many layers were weighted anew.
        """
        self.undo()
        modules, count = dict(self.gated.net.named_modules()), 0
        for name, stays in _columns(self.gated, mask) if fit else ():
            if name in self.moments and not bool(stays.all()):
                seen = self.moments[name]
                own = positions if seen.relative else DAMPING
                _solve(modules[name], stays, seen, own if self.damping is None else self.damping)
                count += 1
        self.gated.set(mask)
        return count


def _columns(gated: GatedCopy, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Layers that can be weighted anew, and which of their input columns or channels stay."""
    open_ids = torch.ones(gated.wiring.units + 1, dtype=torch.bool)  # the last one: the network's input
    given, modules = gated.openness(mask.double()), dict(gated.net.named_modules())
    for layer in gated.wiring.layers:
        if layer.name in given.units:
            open_ids[layer.labels] = given.units[layer.name] > 0
    mixed = torch.zeros_like(open_ids)
    if gated.wiring.mixed is not None:  # what norms over it make of the others moves with every unit that goes
        mixed[:-1] = gated.wiring.mixed
    for layer in gated.wiring.layers:
        if _solvable(layer, modules.get(layer.name)) and not bool(mixed[layer.sources].any()):
            yield layer.name, open_ids[layer.sources]


def _solvable(layer: Layer, module: nn.Module | None) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
        return False
    if isinstance(module, nn.Linear):
        return layer.inputs <= _COLUMNS
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return layer.inputs * module.weight[0, 0].numel() <= _COLUMNS and not isinstance(module.padding, str)
    return False


@contextmanager
def _watched(gated: GatedCopy, wanted: Iterable[str], padding: Padding) -> Iterator[dict[str, Moments]]:
    """Moments of what these layers read, while this is on."""
    modules, found, handles = dict(gated.net.named_modules()), {}, []
    for name in wanted:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        size = weight[0].numel()
        dtype = torch.float64 if size <= _EXACT else torch.float32
        zeros = torch.zeros(size, dtype=dtype, device=weight.device)
        moments = Moments(zeros.new_zeros(size, size), zeros)
        found[name] = moments

        def see(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor, moments: Moments = moments
        ) -> None:
            x = args[0] if args else kwargs["input"]
            if not isinstance(module, nn.Linear):
                moments.add(_few(_patches(module, x)))
            elif x.dim() == 2:
                moments.add(_few(x))
            else:
                square = _few(padding.rows(y)).double().square().sum(1)
                moments.add(_few(padding.rows(x)), 1 / (square + _SHORT * square.median()).clamp(min=1e-30))

        handles.append(modules[name].register_forward_hook(see, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _few(rows: Tensor) -> Tensor:
    """Of many rows evenly spread ones."""
    return rows[:: max(len(rows) // _ROWS, 1)]


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """What a convolution multiplies its weight with, (rows, columns)."""
    few = x[:: max(len(x) // 32, 1)]
    if isinstance(module, nn.Conv1d):
        few, kernel = few.unsqueeze(2), (1, *module.kernel_size)
        found = _unfolded(few, kernel, (1, *module.dilation), (0, *module.padding), (1, *module.stride))
    else:
        assert isinstance(module, nn.Conv2d)
        found = _unfolded(few, module.kernel_size, module.dilation, module.padding, module.stride)
    return found.transpose(1, 2).reshape(-1, found.shape[1])


def _unfolded(x: Tensor, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    return F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)


def _solve(module: nn.Module, stays: Tensor, seen: Moments, damping: float) -> None:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    mean = seen.first.double() / seen.total
    second = seen.second.double() / seen.total
    if isinstance(bias, nn.Parameter):
        second = second - torch.outer(mean, mean)
    taps = weight[0, 0].numel() if weight.dim() > 2 else 1
    kept = stays.repeat_interleave(taps).to(weight.device)
    old = weight.flatten(1).double()
    inner = second[kept][:, kept]
    inner = inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device) * (
        damping * inner.diagonal().mean() + 1e-12
    )
    # the part of the gone columns that the others can say: W' = W + (W gone) C[gone, kept] inner⁻¹ on what stays
    gone = old[:, ~kept] @ second[~kept][:, kept]
    new = torch.zeros_like(old)
    new[:, kept] = old[:, kept] + torch.linalg.solve(inner, gone.T).T
    if isinstance(bias, nn.Parameter):
        bias.add_(((old - new) @ mean).to(bias.dtype))
    weight.copy_(new.view_as(weight).to(weight.dtype))
