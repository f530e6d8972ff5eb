"""Adaptive precision: every weight gets as few bits as the loss allows (after Khoram and Li, ICLR 2018).

Around the present weights the loss grows by at most sum_i |g_i| tau_i when weight i moves by at most tau_i, so the tolerances

    maximise sum_i log2 tau_i   subject to   sum_i |g_i| tau_i <= eps,   0 < tau_i <= Delta

have the closed form tau_i = min(Delta, nu / |g_i|). Each weight becomes the number with the fewest fractional bits within its
tolerance (0 bits: zero, pruned). The step is kept when the measured loss stays within the bound; then the trust region Delta
grows, else the step is undone and Delta shrinks.

The linear bound holds for the worst signs of all moves, which for thousands of weights is far above what happens. So eps is the
room below the bound times a boldness that grows and shrinks with Delta (`bold=False`: always 1, as published). With no room
at all eps is a thousandth of the loss: moves can lower the loss as well, and only the measured loss decides.

Weights are scaled per tensor by a power of two to (-1, 1), so that the numbers are exact in float32. Algebra ours; the paper
trains on the batch gradient, this uses the gradient over all the data given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paring.compression.objective import Objective
from paring.core import Progress, Watch


@dataclass(frozen=True)
class Step:
    """One round of `adaptive_precision`.

    Attributes:
        number: of the round.
        delta: radius of the trust region.
        loss: of the quantised network.
        bits: fractional and sign bits of all weights, and the entropy of the widths.
        predicted: bound on the growth of the loss from the linear model.
        accepted: whether the step was kept.
    """

    number: int
    delta: float
    loss: float
    bits: float
    predicted: float
    accepted: bool


def tolerances(gradient: Tensor, epsilon: float, delta: float) -> Tensor:
    """The largest tolerances (in the sum of logarithms) that keep the linear bound.

    Args:
        gradient: any shape.
        epsilon: allowed growth of the loss, positive.
        delta: largest tolerance, positive.

    Returns:
        tau of the gradient's shape, float64: min(delta, nu / |g|).
    """
    if not (epsilon > 0 and delta > 0):
        raise ValueError(f"tolerances need positive epsilon and delta, got {epsilon} and {delta}")
    size = gradient.detach().abs().double()
    ordered = size.flatten().sort().values
    if delta * float(ordered.sum()) <= epsilon:
        return torch.full_like(size, delta)
    count = len(ordered)
    capped = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)[:-1]])  # sum of the j smallest
    free = torch.arange(count, 0, -1, device=ordered.device)
    nu = (epsilon - delta * capped) / free
    fits = (nu > 0) & (delta * ordered >= nu)  # the first free weight stays below the cap
    previous = torch.cat([ordered.new_zeros(1), ordered[:-1]])
    fits &= delta * previous <= nu
    first = int(fits.nonzero()[0])
    return (nu[first] / size).clamp(max=delta).where(size > 0, torch.full_like(size, delta))


def fewest_bits(value: Tensor, tolerance: Tensor, most: int = 24) -> tuple[Tensor, Tensor]:
    """The number k / 2^n with the smallest n within the tolerance of each value.

    Args:
        value: in (-1, 1), any shape.
        tolerance: of the same shape, positive.
        most: largest n.

    Returns:
        The numbers (float64) and n (int64); n = 0 means zero (or one when only that is near enough).
    """
    wide, left = value.detach().double(), tolerance.double()
    found, width = wide.clone(), torch.full(value.shape, most, device=value.device)
    open_ = torch.ones_like(wide, dtype=torch.bool)
    for n in range(most + 1):
        scale = 2.0**n
        rounded = (wide * scale).round() / scale
        near = open_ & (((rounded - wide).abs() <= left) | (n == most))
        found, width = torch.where(near, rounded, found), torch.where(near, n, width)
        open_ &= ~near
    return found, width


def charged_bits(values: Sequence[Tensor], widths: Sequence[Tensor]) -> float:
    """Fractional bits, a sign for every weight that is not zero, and the entropy of the widths."""
    total = 0.0
    for value, width in zip(values, widths, strict=True):
        share = torch.bincount(width.flatten()).double() / max(1, width.numel())
        share = share[share > 0]
        total += float(width.sum()) + int((value != 0).sum()) - width.numel() * float((share * share.log2()).sum())
    return total


def adaptive_precision(
    net: nn.Module,
    objective: Objective,
    *,
    slack: float = 0.0,
    names: Sequence[str] | None = None,
    rounds: int = 40,
    delta: float | None = None,
    bold: bool = True,
    retrain: Callable[[nn.Module], None] | None = None,
    watch: Watch | None = None,
    judge: Callable[[nn.Module, int, float], bool] | None = None,
) -> tuple[nn.Module, list[Step]]:
    """A copy of the network with as few bits per weight as its loss allows.

    Args:
        net: a trained network; left as it was.
        objective: the loss that is kept, on training or validation data.
        slack: how much the loss may exceed the network's own, at least 0.
        names: parameters to quantise; by default all with two or more dimensions.
        rounds: attempts.
        delta: first radius of the trust region, in units of the scaled weights; by default a tenth of their mean size.
        bold: adapt the part of the linear bound that is used; see the module's docstring.
        retrain: called on the network between rounds to lower its loss again; the published method has none.
        watch: called after every round (`Progress.step`).
        judge: takes a network within the bound, the round and its bits, and says whether it is kept after all.

    Returns:
        The network of the round with the fewest bits within the bound, and all rounds. Interrupting (Ctrl-C) returns
        the best so far.

    Raises:
        ValueError: the loss is not finite, or a setting makes no sense.
    """
    best = copy.deepcopy(net)
    names = list(names if names is not None else [n for n, p in net.named_parameters() if p.dim() >= 2])
    if not names:
        raise ValueError("adaptive_precision: there is no parameter to quantise")
    if not slack >= 0:
        raise ValueError(f"adaptive_precision(slack={slack}): must not be negative")
    start = objective(net)
    if not math.isfinite(start):
        raise ValueError(f"adaptive_precision: the loss of the network is {start}")
    bound = start + slack
    scales = {name: _scale(net.get_parameter(name)) for name in names}
    mean = torch.stack([net.get_parameter(n).detach().abs().double().mean() / scales[n] for n in names]).mean()
    radius = delta if delta is not None else 0.1 * float(mean)
    fewest, boldness = math.inf, 1.0
    steps: list[Step] = []
    present = copy.deepcopy(net)
    try:
        for number in range(rounds):
            if retrain is not None and number:
                retrain(present)
            trial, step = _attempt(present, objective, names, scales, bound, (radius, boldness), number)
            if judge is not None and step.accepted and step.bits < fewest:
                step = replace(step, accepted=judge(trial, number, step.bits))
            steps.append(step)
            if watch is not None:
                watch(Progress(number + 1, rounds, f"{step.bits:,} bits", step, trial))
            if step.accepted and step.bits < fewest:
                fewest, best, present = step.bits, trial, copy.deepcopy(trial)
            radius *= 1.5 if step.accepted else 0.5
            boldness *= 1.0 if not bold else 2.0 if step.accepted else 0.5
    except KeyboardInterrupt:
        if judge is not None:  # whoever judges has the best so far
            raise
    return best, steps


def _attempt(
    net: nn.Module,
    objective: Objective,
    names: Sequence[str],
    scales: dict[str, float],
    bound: float,
    trust: tuple[float, float],
    number: int,
) -> tuple[nn.Module, Step]:
    """Quantise a copy within the trust region (radius, boldness) around `net`, and measure it."""
    radius, boldness = trust
    gradient = objective.gradient(net, names)
    flat = torch.cat([(gradient[name] * scales[name]).flatten().double() for name in names])
    room = max(bound - objective(net), 1e-3 * abs(bound), 1e-12)
    tau = tolerances(flat, boldness * room, radius)
    trial = copy.deepcopy(net)
    values, widths, at = [], [], 0
    with torch.no_grad():
        for name in names:
            weight = trial.get_parameter(name)
            own = tau[at : at + weight.numel()].view(weight.shape)
            at += weight.numel()
            value, width = fewest_bits(weight / scales[name], own)
            weight.copy_(value * scales[name] + 0.0)
            values.append(value)
            widths.append(width)
    loss = objective(trial)
    accepted = math.isfinite(loss) and loss <= bound
    predicted = float((flat.abs() * tau).sum())
    return trial, Step(number, radius, loss, charged_bits(values, widths), predicted, accepted)


def _scale(weight: Tensor) -> float:
    """The power of two just above the largest magnitude."""
    largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
    return 2.0 ** (math.floor(math.log2(largest)) + 1) if largest > 0 else 1.0
