"""Which units go, so that the network fits a budget at the least rise of the loss: a greedy knapsack.

Again and again the units go that cost the loss least for what they save. The saving is the derivative of the cost at the
present widths, since a unit saves less the narrower its neighbours are; it counts only budgets that are not met yet. What is
left of the budget in the end is filled with the units that are worth most and still fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paring.methods.budget import SIZES
from paring.pruning.gated import GatedCopy

_STEPS = 100  # rounds in which the excess is worked off
_FILLED = 200  # blocks tried one by one in the end
Targets = Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """What is to stay.

    Attributes:
        mask: over all gates, True stays.
        shares: share of the dense cost that is left, by the name of the cost.
        path: (share of the first cost, expected rise of the loss) on the way, from what was open in the beginning.
        predicted: shares that were predicted, where those in `shares` were measured.
    """

    mask: Tensor
    shares: dict[str, float]
    path: tuple[tuple[float, float], ...]
    predicted: Mapping[str, float] = field(default_factory=dict)


def choose(
    gated: GatedCopy,
    scores: Tensor,
    targets: Targets,
    *,
    multiple_of: int = 1,
    least: float = 0.0,
    balance: float = 0.0,
    begin: Tensor | None = None,
    goal: Targets | None = None,
) -> Choice:
    """The units that stay.

    Args:
        gated: the network.
        scores: what closing each unit costs the loss, (units,).
        targets: asked shares of the dense network, by the name of the cost.
        multiple_of: units go in blocks of so many, counted within a site.
        least: share of each site that stays in any case; one block always does.
        balance: power of (units before / units left) that scores in a site are multiplied with, so that sites are spared that
            became narrower than others of their kind: heads among heads, other units among those.
        begin: what is open in the beginning; everything by default.
        goal: what is asked for after this round, and is to be reachable, too.

    Raises:
        ValueError: the budget cannot be met; with the least that can be reached.
    """
    blocks = [
        multiple_of if site.kind == "units" and not _is_few(site.shape, multiple_of) else 1 for site in gated.sites
    ]
    mask = torch.ones(gated.units, dtype=torch.bool) if begin is None else begin.clone()
    sizes = gated.sizes
    floors = [
        0 if site.kind == "blocks" else max(block, int(-(-least * size // block) * block))
        for site, block, size in zip(gated.sites, blocks, sizes, strict=True)
    ]
    _check(gated, goal or targets, floors, scores)
    first = next(iter(targets))
    path, risen = [(_shares(gated, mask, targets)[first], 0.0)], 0.0
    start = _worst(_shares(gated, mask, targets), targets)
    while (worst := _worst(_shares(gated, mask, targets), targets)) > 1:
        saving = _saving(gated, mask, targets)
        weighed = scores * _scarcity(gated, mask, balance)
        gone = _cheapest(weighed, saving, mask, sizes, blocks, floors, min(worst - 1, max(start - 1, 0.02) / _STEPS))
        if not len(gone):  # nothing saves by its own derivative: take what is cheapest
            gone = _cheapest(weighed, torch.ones_like(saving), mask, sizes, blocks, floors, 0.0)
        risen += float(scores[gone].sum())
        mask[gone] = False
        path.append((_shares(gated, mask, targets)[first], risen))
    mask = _fill(gated, scores * _scarcity(gated, mask, balance), mask, targets, sizes, blocks)
    return Choice(mask, _shares(gated, mask, targets), tuple(path))


def _scarcity(gated: GatedCopy, mask: Tensor, balance: float) -> Tensor:
    """(units before / units left)^balance of the site of each unit, over the mean of heads or of other units, (units,)."""
    narrowed = torch.tensor([len(part) / max(int(part.sum()), 1) for part in mask.split(gated.sizes)]).log()
    heads = torch.tensor(gated.heads)
    for kind in (heads, ~heads):
        narrowed[kind] -= narrowed[kind].mean()
    return (balance * narrowed).exp().repeat_interleave(torch.tensor(gated.sizes))


def _is_few(shape: Sequence[int], multiple_of: int) -> bool:
    """Whether a site is no larger than one block, as the heads of an attention are."""
    return shape[0] <= multiple_of


def _shares(gated: GatedCopy, mask: Tensor, targets: Targets) -> dict[str, float]:
    found = gated.shares(mask)
    return {name: found[name] for name in targets}


def _worst(shares: Mapping[str, float], targets: Targets) -> float:
    """Largest share of any budget that is used; at most 1 fits."""
    return max(shares[name] / asked for name, asked in targets.items())


def _check(gated: GatedCopy, targets: Targets, floors: Sequence[int], order: Tensor) -> None:
    few = torch.cat([_top(part, floor) for part, floor in zip(order.split(gated.sizes), floors, strict=True)])
    shares = _shares(gated, few, targets)
    if _worst(shares, targets) > 1:
        words = {cost: word for word, cost in SIZES.items()}
        asked = ", ".join(f"{words[name]}={value:.3g}" for name, value in targets.items())
        least = ", ".join(f"{words[name]}={1.01 * value:.2g}" for name, value in shares.items())
        raise ValueError(
            f"Budget({asked}) cannot be met: with as few units as may stay in each of the {len(floors)} gated groups, and all that has "
            f"no gate, the network still costs more. The least is about Budget({least}); pr.groups(net, example) shows what "
            "has no gate, and why"
        )


def _top(values: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:count]] = True
    return chosen


def _saving(gated: GatedCopy, mask: Tensor, targets: Targets) -> Tensor:
    """What each unit saves, in shares of the budgets that are not met, (units,) float64."""
    values = mask.double().requires_grad_()
    with torch.enable_grad():
        cost = gated.model(gated.openness(values))
        over = [gated.share(name, cost) / asked for name, asked in targets.items()]
        (found,) = torch.autograd.grad(
            torch.stack([one for one in over if float(one.detach()) > 1] or over).sum(), values
        )
    return found.clamp(min=0)


def _cheapest(
    scores: Tensor,
    saving: Tensor,
    mask: Tensor,
    sizes: Sequence[int],
    blocks: Sequence[int],
    floors: Sequence[int],
    excess: float,
) -> Tensor:
    """The units that go next: the cheapest blocks whose savings add up to `excess`, at least one."""
    ordered, blocked, allowed, start, count = [], [], [], 0, 0
    for size, block, floor in zip(sizes, blocks, floors, strict=True):
        there = mask[start : start + size].nonzero().flatten() + start
        order = there[scores[there].argsort(stable=True)]
        first = len(order) % block  # a first, smaller block makes the width round
        number = (torch.arange(len(order)) - first).div(block, rounding_mode="floor") + bool(first)
        ends = torch.arange(first or block, len(order) + 1, block)
        ordered.append(order)
        blocked.append(number + count)
        allowed.append(ends <= len(order) - floor)
        start, count = start + size, count + len(ends)
    units, block_of = torch.cat(ordered), torch.cat(blocked)
    costs, saves = (
        torch.zeros(count, dtype=torch.double).index_add_(0, block_of, one[units].double()) for one in (scores, saving)
    )
    useful = (torch.cat(allowed) & (saves > 0)).nonzero().flatten()
    useful = useful[(costs[useful] / saves[useful]).argsort(stable=True)]
    enough = int((saves[useful].cumsum(0) < excess).sum()) + 1
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[useful[:enough]] = True
    return units[chosen[block_of]]


def _fill(
    gated: GatedCopy,
    scores: Tensor,
    mask: Tensor,
    targets: Targets,
    sizes: Sequence[int],
    blocks: Sequence[int],
) -> Tensor:
    """Open again what is worth most and still fits."""
    saving = _saving(gated, mask, targets)
    candidates, start = [], 0
    for size, block in zip(sizes, blocks, strict=True):
        part = (~mask[start : start + size]).nonzero().flatten() + start
        order = part[scores[part].argsort(descending=True, stable=True)]
        for units in order.split(block):
            if len(units) == block or block == 1:
                candidates.append((float(scores[units].sum()) / max(float(saving[units].sum()), 1e-30), units))
        start += size
    candidates.sort(key=lambda pair: -pair[0])
    for _, units in candidates[:_FILLED]:
        wider = mask.clone()
        wider[units] = True
        if _worst(_shares(gated, wider, targets), targets) <= 1:
            mask = wider
    return mask
