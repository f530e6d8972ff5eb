"""What a network would take at other widths: times of its layers at candidate widths, measured on this device, interpolated.

Each linear layer and convolution is timed alone, at the user's batch size, at a quarter, a half, three quarters and all of its
inputs and outputs; between them the time is bilinear. What is left of the whole network's time (activations, norms, attention)
is taken to follow the number of outputs. The sum is differentiable in the widths, so that units are chosen by what they save in
time. What it says is a prediction: `prune` measures the finished network, and chooses again where that is off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Inputs
from paring.cost import Cost
from paring.pruning.gated import GatedCopy
from paring.pruning.passed import passed

POINTS = (0.25, 0.5, 0.75, 1.0)
_SAMPLES = 7
_LEAST_S = 1e-3  # a sample lasts at least so long
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
Clock = Callable[[nn.Module, tuple[Any, ...]], float]
"""Seconds of one call of a module on these arguments."""


@dataclass(frozen=True)
class Grid:
    """Seconds of one layer by the share of its inputs (rows) and outputs (columns)."""

    seconds: Tensor

    def at(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Bilinear between the points, proportional below the first; differentiable. inputs, outputs: shares, 0-dim."""
        row, column = _weights(inputs), _weights(outputs)
        return row @ self.seconds.to(row) @ column


def _weights(share: Tensor) -> Tensor:
    """How much each point counts for this share, (points,)."""
    points = share.new_tensor(POINTS)
    if float(share.detach()) <= POINTS[0]:
        return torch.cat([share[None] / POINTS[0], share.new_zeros(len(POINTS) - 1)])
    after = min(int(torch.searchsorted(points, share.detach())), len(POINTS) - 1)
    part = (share - points[after - 1]) / (points[after] - points[after - 1])
    found = [share.new_zeros(()) for _ in POINTS]
    found[after - 1], found[after] = 1 - part, part
    return torch.stack(found)


class LatencyTable:
    """Predicted seconds of a gated network at any widths.

    Args:
        gated: the network, all gates open.
        inputs: a batch, of the size that is to be fast.
        clock: times a module; the median of some samples by default.
    """

    def __init__(self, gated: GatedCopy, inputs: Inputs, clock: Clock | None = None) -> None:
        self.clock = clock or seconds
        self.dense = gated.model()
        self._grids: dict[str, Grid] = {}
        modules, seen = dict(gated.net.named_modules()), passed(gated, inputs)
        known: dict[tuple[Any, ...], Grid] = {}
        for name, (x, _) in seen.items():
            key = (repr(modules[name]), tuple(x.shape), x.dtype)
            if key not in known:
                known[key] = _grid(modules[name], x, self.clock)
            self._grids[name] = known[key]
        self.whole = (
            self.clock(gated.net, inputs.args) if not inputs.kwargs else self.clock(_Called(gated.net, inputs), ())
        )
        layers = sum(float(grid.seconds[-1, -1]) for grid in self._grids.values())
        self.rest = max(self.whole - layers, 0.0)

    def seconds(self, cost: Cost) -> Tensor:
        """Predicted seconds at the widths of this cost, a 0-dim tensor, differentiable where the cost is."""
        found, outputs, all_outputs = [], [], 0.0
        for name, grid in self._grids.items():
            row, dense = cost.row(name), self.dense.row(name)
            found.append(grid.at(row.inputs / dense.inputs.clamp(min=1), row.outputs / dense.outputs))
            outputs.append(row.outputs)
            all_outputs += float(dense.outputs)
        rest = self.rest * torch.stack(outputs).sum() / all_outputs
        return torch.stack(found).sum() + rest

    def share(self, cost: Cost) -> Tensor:
        """`seconds` over those of the dense network."""
        return self.seconds(cost) / self.seconds(self.dense)


class _Called(nn.Module):
    """A network with its arguments."""

    def __init__(self, net: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.net, self.inputs = net, inputs

    def forward(self) -> Any:
        return self.inputs.call(self.net)


@torch.inference_mode()
def seconds(module: nn.Module, args: tuple[Any, ...]) -> float:
    """Median of some samples, each of so many calls that it lasts a millisecond; CPU time where one thread does all."""
    single = torch.get_num_threads() == 1 and all(not isinstance(a, Tensor) or a.device.type == "cpu" for a in args)
    clock = time.thread_time if single else time.perf_counter
    cuda = any(isinstance(a, Tensor) and a.is_cuda for a in args)

    def sample(count: int) -> float:
        began = clock()
        for _ in range(count):
            module(*args)
        if cuda:
            torch.cuda.synchronize()
        return clock() - began

    sample(2)
    count = 1
    while sample(count) < _LEAST_S:
        count *= 2
    return float(torch.tensor([sample(count) for _ in range(_SAMPLES)]).median()) / count


def _grid(module: nn.Module, x: Tensor, clock: Clock) -> Grid:
    rows = []
    for inputs in POINTS:
        line = []
        for outputs in POINTS:
            small, fed = _resized(module, x, inputs, outputs)
            line.append(clock(small, (fed,)))
        rows.append(line)
    return Grid(torch.tensor(rows, dtype=torch.float64))


def _resized(module: nn.Module, x: Tensor, inputs: float, outputs: float) -> tuple[nn.Module, Tensor]:
    """A stock layer of these shares of the widths, and an input for it."""
    options: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
    if isinstance(module, nn.Linear):
        m, n = _width(module.in_features, inputs), _width(module.out_features, outputs)
        return nn.Linear(m, n, module.bias is not None, **options), x[..., :m].contiguous()
    assert isinstance(module, nn.modules.conv._ConvNd)
    groups = module.groups
    m, n = (
        _width(module.in_channels // groups, inputs) * groups,
        _width(module.out_channels // groups, outputs) * groups,
    )
    if groups == module.in_channels == module.out_channels:  # channels come and go with their groups
        m = n = groups = _width(groups, outputs)
    kind: Any = next(one for one in _CONVOLUTIONS if isinstance(module, one))
    settings = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    small: nn.Module = kind(m, n, **settings, groups=groups, bias=module.bias is not None, **options)
    fed = x[:, :1].expand(-1, m, *x.shape[2:])
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        turned: nn.Module = small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return turned, fed.contiguous(memory_format=torch.channels_last)
    return small, fed.contiguous()


def _width(size: int, share: float) -> int:
    return max(round(size * share), 1)
