"""How the support of gates comes to a budget: on the schedule of silent gates, and at last when gates are held.

What closes in one blow, or has to open again, is said with both sizes: the weights have not adapted to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from paring.core import attached
from paring.cost import CostModel
from paring.gates import Site
from paring.methods.budget import TRIES, Budget
from paring.methods.trained_start import FEW_TRIES, importance_per_cost, silent, silent_course

BLOW = 0.1  # of the dense cost: a schedule that closes more than that at once says so
MISSED = 0.05  # of the asked cost: what the support misses it by when gates are held is said
Told = tuple[str, str]


def close_silent(
    net: nn.Module, sites: Sequence[Site], model: CostModel, budget: Budget, step: int, held: int, told: Told
) -> None:
    """Close the silent gates that matter least per cost, as far as the schedule asks for it at this step.

    Args:
        net: a network whose gates keep slopes.
        sites: the gates.
        model: of the network.
        budget: the asked size.
        step: optimizer steps done.
        held: step at which the gates are held.
        told: when it is, and what to do about it, for messages.
    """
    course = silent_course(held, min(budget.targets.values()))
    if not course.looks(step):
        return
    before, names = budget.shares(net, model), tuple(budget.targets)
    keys = importance_per_cost(net, sites, model, names)
    tries = TRIES if step >= course.end else FEW_TRIES
    budget.at(course.done(step)).project(net, sites, model, keys, tries=tries)
    after = budget.shares(net, model)
    _say_blow(net, [name for name in names if before[name] - after[name] > BLOW], before, after, told)


def meet(net: nn.Module, sites: Sequence[Site], model: CostModel, budget: Budget, told: Told) -> None:
    """Bring the support to the asked size, for good; see `close_silent` for the arguments."""
    asked, before = budget.targets, budget.shares(net, model)
    keys = importance_per_cost(net, sites, model, tuple(asked)) if silent(net, sites) else None
    budget.project(net, sites, model, keys)
    after = budget.shares(net, model)
    _say_blow(net, [name for name in asked if before[name] > (1 + MISSED) * asked[name]], before, after, told)
    small = all(before[name] < (1 - MISSED) * asked[name] for name in asked)
    if small and any(after[name] > (1 + MISSED) * before[name] for name in asked):
        attached(net).say(
            f"L0 opened gates again {told[0]}, as training had closed more than its budget asks for: "
            f"{_from_to(before, after, asked)}. What opens has not trained; train for more steps"
        )


def _say_blow(
    net: nn.Module, names: Sequence[str], before: Mapping[str, float], after: Mapping[str, float], told: Told
) -> None:
    """Say that a budget closed much at once, which the weights had no time to adapt to."""
    if names:
        attached(net).say(
            f"L0 closed gates in one blow {told[0]}, to meet its budget: {_from_to(before, after, names)}. Until then training "
            f"had not closed them, and the weights have not adapted. {told[1]}"
        )


def _from_to(before: Mapping[str, float], after: Mapping[str, float], names: Iterable[str]) -> str:
    return ", ".join(f"{name} from {before[name]:.1%} to {after[name]:.1%} of the dense network" for name in names)
