"""Which units go: judged, chosen and repaired in rounds, and again where a measured cost is off."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Inputs, release
from paring.core import validate as check
from paring.core.default_loss import Loss, mean_loss
from paring.core.fresh import let_go
from paring.cost import latency, peak_memory, ratio
from paring.methods import Budget
from paring.pruning.calls import few, runs
from paring.pruning.gated import GatedCopy, Share
from paring.pruning.importance import Fisher, Importance
from paring.pruning.knapsack import Choice, choose
from paring.pruning.latency_table import LatencyTable
from paring.pruning.norms import has_batch_norm, renew_statistics
from paring.pruning.pruned import over
from paring.pruning.repair import Repair
from paring.pruning.space import Bytes, Memory
from paring.removal import Report, compact

STEP = 0.84  # what one round leaves of the network, at least, where nobody says how many there are
BALANCE = 2.0  # of networks with BatchNorm
_TRIES = 5  # choices until a measured cost is met
_NEAR = 0.03  # of it
HELD = 2  # batches, beyond those that are looked at, that repairs are judged on
_FULL = 0.98  # of what was asked: this cost decides
_ROUNDS = 15  # paired measurements of a latency
_AIMS = {"latency": 1.0, "memory": 0.97}  # of what was asked; memory is a limit


@dataclass(frozen=True)
class Search:
    """How the units that go are found.

    Args:
        importance: how units are judged.
        rounds: the cut is made in so many steps, judged anew before each; None takes as many as leave at least `STEP` of the
            network each: 4 for a half, 8 for a quarter. The widths stand before training either way.
        batches: how many batches are looked at.
        repair: let what stays take over the work of what goes, by least squares, where that lowers the loss of two further batches.
        damping: share of the mean variance that least squares adds to each variance. None is 0.001; for layers that read positions
            of sequences 0.1 is tried as well.
        least: share of the units of each group that stays in any case; one always does. Residual branches may all go.
        balance: power of (units before / units left) that importance in a group is multiplied with: groups are spared that became
            narrower than others of their kind (heads, or other units). 0 goes by the loss right after the cut alone. None is
            `BALANCE` for networks with BatchNorm, where that leaves bottlenecks that training does not mend, and 0 for others,
            where groups differ in how much they are needed (transformers).

    Raises:
        ValueError: a number is out of its range.
    """

    importance: Importance = Fisher()  # noqa: RUF009  # a frozen value
    rounds: int | None = None
    batches: int = 8
    repair: bool = True
    damping: float | None = None
    least: float = 0.0
    balance: float | None = None

    def __post_init__(self) -> None:
        check.whole_number(self, "batches", *(("rounds",) if self.rounds is not None else ()))
        check.positive(self, *(("damping",) if self.damping is not None else ()))
        check.not_negative(self, *(("balance",) if self.balance is not None else ()))
        check.within(self, "[0, 1)", "least", what="a share of a group's units,")

    def rounds_for(self, asked: Mapping[str, float]) -> int:
        """How many rounds for these shares of the dense network."""
        return self.rounds or max(math.ceil(math.log(min(asked.values())) / math.log(STEP) - 1e-9), 1)

    def balance_for(self, net: nn.Module) -> float:
        """`balance`, or what it is by default for this network."""
        if self.balance is not None:
            return self.balance
        return BALANCE if has_batch_norm(net) else 0.0


Measure = Callable[[nn.Module], float]
"""What a small network takes, measured, as a share of the dense one."""


@dataclass(frozen=True)
class Setting:
    """What a search goes by.

    Attributes:
        search: how to look.
        seen: batches to judge on.
        held: batches that repairs are judged on: others, where there are some.
        loss: of a network on a batch.
        given: what the network is captured with.
        whole: what the loss calls it with, for a batch.
    """

    search: Search
    seen: list[Any]
    held: list[Any]
    loss: Loss
    given: Inputs
    whole: Inputs


def with_costs(gated: GatedCopy, budgets: list[Budget], whole: Inputs) -> GatedCopy:
    """The gated network, with what these budgets ask for beyond parameters and MACs; times are measured here."""
    makes: dict[str, Callable[[], Share]] = {
        "latency": lambda: LatencyTable(gated, whole),
        "bytes": lambda: Bytes(gated),
        "memory": lambda: Memory(gated, whole),
    }
    asked = {name for budget in budgets for name in budget.targets}
    return replace(gated, further={name: make() for name, make in makes.items() if name in asked})


def _measures(net: nn.Module, budget: Budget, whole: Inputs) -> dict[str, Measure]:
    """How the costs that are only predicted are measured, by name."""
    kinds: dict[str, Callable[..., float]] = {"latency": _time, "memory": _memory}
    return {name: partial(kind, net, whole) for name, kind in kinds.items() if name in budget.targets}


def _time(net: nn.Module, whole: Inputs, small: nn.Module) -> float:
    times = latency({"dense": net, "small": small}, whole, threads=torch.get_num_threads(), repeats=_ROUNDS)
    return ratio(times["small"], times["dense"])


def _memory(net: nn.Module, whole: Inputs, small: nn.Module) -> float:
    return peak_memory(small, whole) / peak_memory(net, whole)


def cut(
    net: nn.Module, gated: GatedCopy, repair: Repair, budget: Budget, how: Setting
) -> tuple[Choice, nn.Module, Report]:
    """The choice and the small network; what is only predicted is measured, and asked for anew where it is off.

    Raises:
        ValueError: the budget cannot be met; with the least that can be reached.
    """
    asked, measures = dict(budget.targets), _measures(net, budget, how.whole)
    found: list[tuple[float, Choice]] = []
    standing: Choice | None = None  # what the gates show
    for left in reversed(range(_TRIES if measures else 1)):
        try:
            choice = find(gated, repair, asked, budget.multiple_of, how)
        except ValueError:
            if not found:
                raise
            standing = None
            break  # so little cannot be reached: the best there is stays, and `Pruned.notes` says what was missed
        small, report = removed(gated, how)
        if not measures:
            return choice, small, report
        got = {name: measure(small) for name, measure in measures.items()}
        choice = replace(choice, shares={**choice.shares, **got}, predicted={name: choice.shares[name] for name in got})
        off, standing = _off(choice.shares, budget, got), choice
        found.append((off, choice))
        if off <= _NEAR or not left:
            break
        for name, share in got.items():
            aim = _AIMS[name] * budget.targets[name]
            if share > aim or all(one <= _AIMS[other] * budget.targets[other] for other, one in got.items()):
                asked[name] = min(max(asked[name] * aim / share, 0.5 * asked[name]), 1.0)
    best = min(found, key=lambda one: (bool(over(one[1].shares, budget)), one[0]))[
        1
    ]  # one that meets it, if there is any
    if best is not standing:
        _close(gated, repair, best.mask, how)
        small, report = removed(gated, how)
    return best, small, report


def _off(shares: Mapping[str, float], budget: Budget, measured: Iterable[str]) -> float:
    """How far a measured cost is from what it should be, relative to it; 0 where it is smaller since another one decides."""
    most = max(shares[name] / (_AIMS[name] * budget.targets[name]) for name in measured)
    others = (shares[name] / share for name, share in budget.targets.items() if name not in _AIMS)
    return 0.0 if most < 1 and any(share > _FULL for share in others) else abs(most - 1)


def find(
    gated: GatedCopy,
    repair: Repair,
    asked: Mapping[str, float],
    multiple_of: int,
    how: Setting,
) -> Choice:
    """What goes, in rounds; the gated network is repaired and closed accordingly.

    Args:
        gated: the network.
        repair: its repair.
        asked: shares of the dense network by name of the cost.
        multiple_of: units go in blocks of so many.
        how: what the search goes by.
    """
    mask, scores = gated.begin if multiple_of == 1 else torch.ones(gated.units, dtype=torch.bool), None
    repair.apply(mask)
    path: list[tuple[float, float]] = []
    rounds = how.search.rounds_for(asked)
    for part in ((number + 1) / rounds for number in range(rounds)):
        judged = how.search.importance.look(gated, how.seen, how.loss)
        scores = judged if scores is None else torch.where(mask, judged, scores)  # what is closed keeps its last one
        targets = {name: share**part for name, share in asked.items()}
        choice = choose(
            gated,
            scores,
            targets,
            multiple_of=multiple_of,
            least=how.search.least,
            balance=how.search.balance_for(gated.net),
            begin=mask,
            goal=asked,
        )
        mask = choice.mask
        _close(gated, repair, mask, how)
        risen = path[-1][1] if path else 0.0  # a round begins where the last one ended
        path += [(share, risen + rise) for share, rise in choice.path[bool(path) :]]
    return Choice(mask, gated.shares(mask), tuple(path))


def _close(gated: GatedCopy, repair: Repair, mask: Tensor, how: Setting) -> None:
    """Close what is not in `mask`, and let what stays take over its work, in the way that has the lowest loss; or not at all.

    Least squares fit the rows that were seen: of a wide layer and few rows too well. Where there are no further batches to
    judge on, the larger damping is taken: on what was fitted the smaller one is always better.
    """
    ways: list[dict[str, Any]] = [{"fit": False}]
    if repair.fits:
        fresh = how.held[0] is not how.seen[0]
        ways += [{"positions": damping} for damping in repair.dampings[0 if fresh else -1 :]]
    losses = []
    for way in ways:
        repair.apply(mask, **way)
        renew_statistics(gated.net, how.seen, how.loss)
        losses.append(mean_loss(gated.net, how.held, how.loss))
    best = min(range(len(ways)), key=lambda n: math.inf if math.isnan(losses[n]) else losses[n])
    if best != len(ways) - 1:
        repair.apply(mask, **ways[best])
        renew_statistics(gated.net, how.seen, how.loss)


def removed(gated: GatedCopy, how: Setting) -> tuple[nn.Module, Report]:
    """The network without what is closed; the gated one stays.

    A network in graph form takes what it was captured with: what the loss gives it, where that is more.
    """
    let_go(gated.net)
    bare = copy.deepcopy(gated.net)
    release(bare)
    small, report = compact(bare, how.given)
    called = few(how.whole)
    if report.form == "graph" and not runs(small, called):
        small, report = compact(bare, called)
        told = f"this form takes what the loss gives it, no less: {', '.join(called.kwargs) or called}"
        report = replace(report, notes=(*report.notes, told))
    return small, report
