"""Calibrated rounding, after training: the errors of rounding go where the loss minds them least.

1. Calibration batches tell the second moments of what each weight reads (`second_moments`), and how much the loss minds a
   change of each row of each weight (`output_curvature`).
2. Steps: s_r = sigma / sqrt(c_r), c_r what a squared error in row r costs the loss once the rest of the row has made up for
   it. A bit then buys the same everywhere (equal slopes), with one sigma for the whole network.
3. Rounding column by column, each correcting those before it (`feedback`), at a price of the levels' bits.
4. sigma is bisected: the coarsest whose decoded file keeps the bound.

Embeddings have no inputs to correlate; their rows are weighed by how often and how much they matter, their columns by the
curvature between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from paring.compression.feedback import bits_of, factor, rounded_in_turn, spared
from paring.compression.grid_rounding import rounded
from paring.compression.output_curvature import Curvature, output_curvature
from paring.compression.second_moments import Layout, Moments, second_moments
from paring.compression.step_sizes import finest, mean_square, short, spread
from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tensors import weights_of
from paring.core import warn
from paring.core.evaluating import evaluating

_SAMPLE = 1 << 18
"""Entries that tell how often each level occurs."""
_NOTHING = 1e-30
_STEP_BITS = 32
"""What a file keeps for the step of a row."""
_SHRUNK = 0.25
"""Share of the mean in each row's curvature, which few batches tell roughly."""


@dataclass
class Part:
    """One weight, and what is known of it.

    Attributes:
        weight: as given.
        layout: how it is seen as matrices.
        factors: of the columns, see `feedback.factor`; None where nothing is known of them.
        cost: what a squared error costs, for each row of the weight (one entry for all, where rows mean something else).
    """

    weight: Tensor
    layout: Layout
    factors: Tensor
    cost: Tensor

    def steps(self, sigma: float) -> Tensor:
        """Of the rows, (rows, 1, ...), as a file holds them."""
        wanted = (sigma / self.cost.sqrt()).view(-1, *[1] * (self.weight.dim() - 1))
        rows = len(self.cost) > 1
        step = short(torch.maximum(wanted, finest(self.weight, rows)))
        return step.where(step > 0, torch.ones_like(step))

    def rounded(self, sigma: float, price: float) -> Tensor:
        """The weight on its grid."""
        step = self.steps(sigma).to(self.factors.dtype)
        matrices = self.layout.matrices(self.weight / step)
        sample = matrices.flatten()[:: max(1, matrices.numel() // _SAMPLE)]
        levels = rounded_in_turn(matrices, self.factors, bits_of(rounded(sample, 1.0, price)), price)
        return (self.layout.weight(levels) * step).to(self.weight.dtype)


@dataclass(frozen=True)
class CalibratedRounding(Compressor):
    """Calibrated rounding.

    Args:
        bits: of a weight on average, at first; finer or coarser as the bound demands.
        price: of a bit, in units of a squared step.
        damping: of the second moments, in units of their mean diagonal.
        batches: of the training data, to calibrate with.
        halvings: of the last bracket of `bits`.

    Raises:
        ValueError: a number out of its range.
    """

    bits: float = 4.0
    price: float = 0.05
    damping: float = 0.01
    batches: int = 8
    halvings: int = 3

    def __post_init__(self) -> None:
        if not (self.bits > 0 and self.price >= 0 and self.damping > 0 and self.batches > 0 and self.halvings >= 0):
            raise ValueError(
                f"CalibratedRounding(bits={self.bits}, price={self.price}, damping={self.damping}, batches={self.batches}, "
                f"halvings={self.halvings}): out of range"
            )

    def run(self, task: Task) -> None:
        parts = self.calibrated(task)
        if not parts:
            return
        bisect(
            lambda bits: task.offer(self.at(bits, task.net, parts), bits=round(bits, 4)).within,
            self.bits,
            self.halvings,
        )

    @torch.no_grad()
    def at(self, bits: float, net: nn.Module, parts: dict[str, Part]) -> nn.Module:
        """A copy of the network, rounded to about so many bits a weight."""
        twin, sigma = working_copy(net), _unit(parts) * 2**-bits
        for name, part in parts.items():
            twin.get_parameter(name).copy_(part.rounded(sigma, self.price))
        return twin

    def calibrated(self, task: Task) -> dict[str, Part]:
        """The weights with what calibration batches tell of them."""
        training = task.training
        loss, batches = training.loss, list(islice(training.batches(0), self.batches))
        net = working_copy(task.net)
        weights = weights_of(net)

        def run() -> None:
            with evaluating(net):
                for batch in batches:
                    loss(net, batch)

        moments = second_moments(weights, run)
        tables = [name for name, weight in weights.items() if weight.dim() == 2 and name not in moments]
        curvature = output_curvature(net, loss, batches, list(weights), tables=tables)
        if not curvature:
            warn(
                "CalibratedRounding: the loss does not depend on what the network answers, so nothing tells which weights matter, and "
                "steps follow the spread of each tensor. Let loss(net, batch) call net(...) and use what it returns"
            )
        least = min((float(one.rows.mean()) for one in curvature.values() if bool(one.rows.any())), default=None)
        return {
            name: self._part(weight.detach(), moments.get(name), curvature.get(name) or _unknown(weight, least))
            for name, weight in weights.items()
        }

    def _part(self, weight: Tensor, moments: Moments | None, curvature: Curvature) -> Part:
        layout = Layout(tuple(weight.shape)) if moments is None else moments.layout
        total = _columns(weight, layout, curvature) if moments is None else moments.total
        factors = factor(total, self.damping)
        groups = layout.groups
        trace = total.diagonal(dim1=-2, dim2=-1).mean(1).view(groups, -1).mean(1)
        spare = spared(factors).mean(1).view(groups, -1).mean(1) / trace
        spare = spare.where(trace > 0, torch.ones_like(spare)).double()
        rows = curvature.rows.double() * len(weight) / weight.numel()
        if layout.first:  # the file's rows are these matrices' columns
            return Part(weight, layout, factors, (rows.mean() * spare.mean())[None].clamp_min(_NOTHING))
        rows = (1 - _SHRUNK) * rows + _SHRUNK * rows.mean()
        rows = (rows.view(groups, -1) * spare[:, None]).flatten().clamp_min(_NOTHING)
        saved = (rows.mean().log2() - rows.log2().mean()) / 2  # bits of a weight, at high rates
        pays = saved * weight.numel() / len(weight) > _STEP_BITS
        return Part(weight, layout, factors, rows if pays else rows.mean()[None])


def _unknown(weight: Tensor, least: float | None) -> Curvature:
    """What calibration does not reach is taken for as unimportant as the least important of what it does, if any."""
    size = mean_square(weight.detach().reshape(1, -1).double()).square().clamp_min(_NOTHING)
    rows = weight.numel() / len(weight) / size if least is None else torch.full_like(size, least)
    return Curvature(rows.expand(len(weight)), weight.new_zeros(0, 0))


def _columns(weight: Tensor, layout: Layout, curvature: Curvature) -> Tensor:
    """What stands for the second moments of a weight that nothing is multiplied by: the curvature between its columns, if known."""
    width = layout.columns // layout.blocks
    if not curvature.columns.numel():
        return torch.eye(width, device=weight.device).expand(layout.blocks, -1, -1)
    parts = curvature.columns.to(torch.promote_types(weight.dtype, torch.float32)).split(width)
    return torch.stack([part[:, n * width : (n + 1) * width] for n, part in enumerate(parts)])


def _unit(parts: dict[str, Part]) -> float:
    """The sigma at which a weight takes no bit on average, of high rates: one of k bits is 2^-k of it."""
    total = count = 0.0
    for part in parts.values():
        size = spread(mean_square, part.weight, len(part.cost) > 1).flatten()
        log = (size.clamp_min(_NOTHING) * part.cost.sqrt()).log2() + 2.0
        total += float(log.mean()) * part.weight.numel()
        count += part.weight.numel()
    return 2 ** (total / count)


def bisect(within: Callable[[float], bool], first: float, halvings: int, most: int = 8) -> None:
    """Look for the smallest number that is within, going on by ones and then by halves.

    Args:
        within: of a number of bits.
        first: where to begin.
        halvings: of the last bracket.
        most: steps of one bit, either way.
    """
    coarser = within(first)
    good, bad = (first, 0.0) if coarser else (math.inf, first)
    for _ in range(most):
        if bad and good < math.inf:
            break
        bits = good / 2 if coarser and good <= 1 else good - 1 if coarser else bad + 1
        good, bad = (bits, bad) if within(bits) else (good, bits)
    for _ in range(halvings if bad and good < math.inf else 0):
        bits = (good + bad) / 2
        good, bad = (bits, bad) if within(bits) else (good, bits)
