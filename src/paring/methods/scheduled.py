"""How gates that draw noise approach a budget: at a rate of their own, along a schedule, never in one blow.

    rate per step     1.6 / √T,  T the steps until the gates are held
    schedule          from the dense size at T/10 to the asked one at 8T/10, in a straight line

Each gate steps by that rate against its mean gradient over the gradient's root mean square (Adam without its learning rate).
A gate whose gradient is noise then wanders by about 1.6 in log-alpha whatever the length of training is, and one whose
gradient agrees with itself travels 1.6 √T. The learning rate and the kind of the weights' optimizer play no part.

The multiplier and the loss decide who closes. When the support would run ahead of the schedule, or lose more in one step than
a fiftieth of the dense size and twice what the schedule takes in a step, the likeliest of those that close stay where they
were; when it is a tenth of the way late, the least likely gates are closed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paring.cost import CostModel
from paring.gates import Site, StochasticGate
from paring.methods.budget import EVERY, Budget
from paring.methods.trained_start import FEW_TRIES, Course, stochastic

RATE = 1.6
UNTOLD = 20_000  # steps, when nobody said how many there are
GAIN = 10.0  # of the multiplier, as the excess over a schedule is a small part of that over the end
_AHEAD, _LATE = 0.03, 0.1  # of the way
_SLACK = 0.97  # of the scheduled size: below it nothing more closes
_MOST = 0.02  # of the dense size, besides twice what the schedule takes in a step: what may close in one
_FEW = 200  # closings of less than one in so many gates wait for the next look


def scratch_course(held: int) -> Course:
    """The schedule of gates that are held from step `held` on."""
    return Course(round(0.1 * held), max(1, round(0.8 * held)))


@torch.no_grad()
def move(net: nn.Module, sites: Sequence[Site], model: CostModel, budget: Budget, step: int, held: int) -> None:
    """One step of all gates.

    Args:
        net: a network whose gates keep slopes.
        sites: the gates.
        model: of the network.
        budget: the asked size.
        step: optimizer steps done.
        held: step at which the gates are held.
    """
    gates, course = list(stochastic(net, sites)), scratch_course(held)
    was, opened = [gate.log_alpha.detach().clone() for gate in gates], [gate.support() for gate in gates]
    for gate in gates:
        gate.move(RATE / math.sqrt(held))
        gate.constrain()
    look = step % EVERY == 0 or course.looks(step)
    closing = [before & ~gate.support() for gate, before in zip(gates, opened, strict=True)]
    count = int(torch.stack([part.sum() for part in closing]).sum())
    if count and (look or count * _FEW > sum(part.numel() for part in closing)):
        ahead = budget.at(min(1.0, course.done(step) + _AHEAD)).targets
        most = {name: _MOST + 2 * (1 - asked) / (course.end - course.begin) for name, asked in budget.targets.items()}
        _stay(gates, was, closing, lambda: budget.shares(net, model), ahead, most)
    late = budget.at(course.done(step - round(_LATE * held)))
    if look and any(share > late.targets[name] for name, share in late.shares(net, model).items()):
        replace(late, multiple_of=1).project(net, sites, model, tries=FEW_TRIES, for_good=False)


def _stay(
    gates: Sequence[StochasticGate],
    was: Sequence[Tensor],
    closing: Sequence[Tensor],
    shares: Callable[[], Mapping[str, float]],
    least: Mapping[str, float],
    most: Mapping[str, float],
) -> None:
    """Let as few of the closing gates as possible stay where they were, so that not too much closes.

    Args:
        gates: all of them, after the step.
        was: their log-alphas before it.
        closing: where each was open and is closed now.
        shares: of the dense cost, by name, that the support takes now.
        least: sizes by name, of which one at least has to be reached but for a slack.
        most: what may close in one step, by name.
    """
    now = [gate.log_alpha.detach().clone() for gate in gates]
    levels = torch.cat([new[part].float() for new, part in zip(now, closing, strict=True)]).sort(descending=True).values

    def stay(count: int) -> Mapping[str, float]:
        level = levels[count - 1] if count else math.inf
        for gate, new, before, part in zip(gates, now, was, closing, strict=True):
            gate.log_alpha.copy_(torch.where(part & (new >= level), before, new))
        return shares()

    before = stay(len(levels))

    def enough(count: int) -> bool:
        left = stay(count)
        slow = all(before[name] - share <= most[name] for name, share in left.items())
        return slow and any(share >= _SLACK * least[name] for name, share in left.items())

    count = bisect_left(range(len(levels)), True, key=enough)
    stay(count)
