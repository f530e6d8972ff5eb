"""What is left takes over the work of what goes: least squares for the layers that read it.

A layer computes y = W x + b. When columns of x go, the others are weighted anew, so that y moves least on the calibration
batches (as in channel pruning by reconstruction, He et al. 2017, and the second-order rule of Hassibi and Stork 1993):

    W' = W C[:, R] (C[R, R] + damping · mean(diag C) · I)⁻¹        b' = b + (W - W') mean(x)

with C the covariance of x in the whole network, and R what stays. Layers without a bias use second moments in place of the
covariance. Grouped convolutions, embeddings, frozen weights and layers that are not called (the last one of
`nn.MultiheadAttention`) are left as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis.wiring import Layer
from paring.core.default_loss import Loss
from paring.pruning.gated import GatedCopy

_COLUMNS = 6_144  # beyond that the moments take too much memory and time
_EXACT = 2_048  # up to that they are kept in float64
_ROWS = 2_048  # positions of a batch that are looked at


@dataclass
class Moments:
    """Second moments of what a layer reads, and its mean.

    Attributes:
        second: sum of x xᵀ, (columns, columns).
        first: sum of x, (columns,).
        count: rows seen.
    """

    second: Tensor
    first: Tensor
    count: int = 0

    def add(self, rows: Tensor) -> None:
        """More rows, (n, columns)."""
        rows = rows.to(self.second)
        self.second += rows.T @ rows
        self.first += rows.sum(0)
        self.count += len(rows)


class Repair:
    """A network in which the readers of what goes can be weighted anew, always from the weights that they had.

    Args:
        gated: the network, with all gates open.
        batches: to measure on what its layers read.
        loss: runs the network on a batch.
        damping: share of the mean variance that is added to each variance; None leaves the weights as they are.
    """

    @torch.no_grad()
    def __init__(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss, damping: float | None = 1e-3) -> None:
        self.gated, self.damping = gated, damping
        self.original = copy.deepcopy(gated.net.state_dict())  # with the versions that some modules ask for
        self.moments: dict[str, Moments] = {}
        if damping is not None:
            everything = torch.zeros(gated.units, dtype=torch.bool)
            readers = [name for name, stays in _columns(gated, everything) if not bool(stays.all())]
            with _watched(gated, readers) as self.moments:
                for batch in batches:
                    loss(gated.net, batch)
        # a layer whose weight is read without calling it, as torch's attention does with its last one, was not seen
        self.moments = {name: seen for name, seen in self.moments.items() if seen.count}

    def undo(self) -> None:
        """All weights and statistics are those of the beginning; the gates stay as they are."""
        self.gated.net.load_state_dict(self.original)

    @torch.no_grad()
    def apply(self, mask: Tensor, *, fit: bool = True) -> int:
        """Close what is not in `mask`, (units,), and weigh its readers anew; what both had before is undone.

        Args:
            mask: True stays.
            fit: whether readers are weighted anew.

        Returns:
            How many layers were weighted anew.
        """
        self.undo()
        modules, count = dict(self.gated.net.named_modules()), 0
        for name, stays in _columns(self.gated, mask) if fit else ():
            if name in self.moments and self.damping is not None and not bool(stays.all()):
                _solve(modules[name], stays, self.moments[name], self.damping)
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
def _watched(gated: GatedCopy, wanted: Iterable[str]) -> Iterator[dict[str, Moments]]:
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

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], moments: Moments = moments) -> None:
            moments.add(_rows(module, args[0] if args else kwargs["input"]))

        handles.append(modules[name].register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """What the layer multiplies its weight with, (rows, columns); of many rows evenly spread ones."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
    elif isinstance(module, nn.Conv1d):
        x, kernel = x.unsqueeze(2), (1, *module.kernel_size)
        rows = _patches(x, kernel, (1, *module.dilation), (0, *module.padding), (1, *module.stride))
    else:
        assert isinstance(module, nn.Conv2d)
        rows = _patches(x, module.kernel_size, module.dilation, module.padding, module.stride)
    step = max(len(rows) // _ROWS, 1)
    return rows[::step]


def _patches(x: Tensor, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    few = x[:: max(len(x) // 32, 1)]
    found = F.unfold(few, kernel, dilation=dilation, padding=padding, stride=stride)
    return found.transpose(1, 2).reshape(-1, found.shape[1])


def _solve(module: nn.Module, stays: Tensor, seen: Moments, damping: float) -> None:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    mean = seen.first.double() / seen.count
    second = seen.second.double() / seen.count
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
