"""Gates on a trained network: they change nothing at first, and close in the order of what the loss would lose.

While a gate is silent it shows one where it is open, so the network computes what it did, and its gradient is the slope of
the loss in the multiplier: for a unit with weights θ the sum of θ ∂L/∂θ. What the loss would lose without it is, to second
order and with the Fisher information for the curvature, half of the mean of its square (Molchanov et al. 2019,
arXiv 1906.10771; Theis et al. 2018, arXiv 1801.05787). Gates are ranked by that per cost.

    importance_g = E[(∂L/∂z_g)²],  over about the last ten steps
    cost_g       = Σ over the asked costs of ∂cost/∂z_g / dense cost, everything else as it is now
    rank         by importance_g / cost_g: the lowest close first

Where we differ: the mean is over minibatches and goes on while gates close, the ranking is per cost, and what closes is
what a schedule asks for (`Course`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.cost import CostModel
from paring.gates import Site, StochasticGate, gate_of, openness

MEMORY = 10  # steps over which slopes are averaged
_LOOKS = 50  # times that a schedule is looked at, at most; every step where it is shorter
FEW_TRIES = 30  # gates tried to fill what is left at a look of a schedule, where the last look tries more
_MOST = 0.06  # of the dense size: what a curved schedule takes in one step; only a straight one takes more
_WATCHED = 0.12  # of the time until the gates are held: importance is gathered, and nothing closes
_UNTOLD = 100  # steps for which gates with a price are watched when nobody said how long training is


@dataclass(frozen=True)
class Course:
    """The schedule on which a budget is approached: the dense size until `begin`, the asked size from `end` on.

    Attributes:
        begin, end: optimizer steps.
        power: of the share that is still to go; 1 is a straight line, larger ones are faster at first.
    """

    begin: int
    end: int
    power: float = 1.0

    def done(self, step: int) -> float:
        """The share of the way that is behind at this step, in [0, 1]."""
        if step >= self.end:
            return 1.0
        left = min(1.0, (self.end - step) / max(1, self.end - self.begin))
        return 1.0 - math.pow(left, self.power)

    def looks(self, step: int) -> bool:
        """Whether the support is looked at now."""
        every = max(1, (self.end - self.begin) // _LOOKS)
        return step >= self.end or (step > self.begin and (self.end - step) % every == 0)


def silent_course(held: int, asked: float) -> Course:
    """The schedule of silent gates that are held from step `held` on: fast at first, as fast as `_MOST` lets it.

    Final sizes that stand early leave the weights the time to adapt.

    Args:
        held: step at which the gates are held.
        asked: the smallest asked size, as a fraction of the dense one.
    """
    begin = max(1, round(_WATCHED * held))
    end = max(begin + 1, held - 1)
    power = _MOST * (end - begin) / max(1 - asked, _MOST)
    return Course(begin, end, min(3.0, max(1.0, power)))


def watched(steps: int | None) -> int:
    """Steps for which gates with a price stay silent."""
    return _UNTOLD if steps is None else max(1, round(0.03 * steps))


def is_trained(net: nn.Module) -> bool:
    """Whether the network shows that it was trained; False where it shows nothing.

    BatchNorms that have counted batches, or whose running statistics moved, say so. In a network without any, the scale or
    shift of another norm that differs from unit to unit does: it begins alike everywhere. Nothing else is evidence.
    """
    running = [m for m in net.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    if running:
        return any(_has_run(m) for m in running)
    norms = [m for m in net.modules() if "norm" in type(m).__name__.lower()]
    return any(_differs(getattr(m, name, None)) for m in norms for name in ("weight", "bias"))


def _has_run(norm: nn.Module) -> bool:
    count = getattr(norm, "num_batches_tracked", None)
    if isinstance(count, Tensor) and int(count) > 0:
        return True
    mean, var = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    return bool((mean != 0).any()) or bool((var != 1).any())


def _differs(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and bool((value != value.flatten()[0]).any())


def silent(net: nn.Module, sites: Sequence[Site]) -> bool:
    """Whether these gates are silent."""
    return any(gate.silent for gate in stochastic(net, sites))


def stochastic(net: nn.Module, sites: Sequence[Site]) -> Iterator[StochasticGate]:
    """The gates at these sites.

    Raises:
        TypeError: one of them is of another kind.
    """
    for site in sites:
        gate = gate_of(net, site)
        if not isinstance(gate, StochasticGate):
            raise TypeError(f"a budget ranks stochastic gates by their log-alpha; {type(gate).__name__} has none")
        yield gate


def importance_per_cost(net: nn.Module, sites: Sequence[Site], model: CostModel, names: Sequence[str]) -> list[Tensor]:
    """What the loss would lose per cost saved, for every gate of every site; float64 on the CPU.

    Args:
        net: a network with gates that keep slopes.
        sites: where they are.
        model: of the network.
        names: the costs that count, each as a share of the dense network's.
    """
    gates = list(stochastic(net, sites))
    opened = {id(gate): gate.support().double().cpu().requires_grad_() for gate in gates}
    with torch.enable_grad():
        given = openness(
            net, model.wiring, lambda gate: opened[id(gate)] if id(gate) in opened else gate.support().double().cpu()
        )
        cost, dense = model(given), model()
        total = torch.stack([getattr(cost, name) / float(getattr(dense, name)) for name in names]).sum()
    prices = torch.autograd.grad(total, list(opened.values()))
    return [
        _square(gate) / price.clamp(min=torch.finfo(torch.float64).tiny)
        for gate, price in zip(gates, prices, strict=True)
    ]


def _square(gate: StochasticGate) -> Tensor:
    if gate.square is None:
        raise ValueError("this gate keeps no slopes, by which it could be ranked; keep_slopes begins it")
    return gate.square.detach().double().cpu()


@torch.no_grad()
def draw_by_rank(net: nn.Module, sites: Sequence[Site], scores: Sequence[Tensor]) -> None:
    """Let silent gates draw: the most important one from the highest log-alpha, all of them likely to stay open."""
    flat = torch.cat([score.flatten() for score in scores])
    rank = torch.empty_like(flat)
    rank[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat), dtype=flat.dtype)
    for gate, part in zip(stochastic(net, sites), rank.split([score.numel() for score in scores]), strict=True):
        low, high = gate.relaxation.logits(0.9), gate.relaxation.logits(0.99)
        gate.log_alpha.copy_((low + (high - low) * part).view(gate.shape))
        gate.draw()
