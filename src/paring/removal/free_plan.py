"""Plans where sizes in the forward may change: what they mean for loose parameters and for the scale of attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paring.analysis.attention_scale import scale_amounts
from paring.analysis.input_groups import InputGroups
from paring.analysis.interpret import Interpretation
from paring.analysis.weights import dims
from paring.removal.plan import Cut, Fold, ShrinkPlan, full_name, make_plan


def free_plan(
    analysis: Interpretation,
    *,
    spare: Collection[str] = (),
    drop_inputs: bool = False,
    other: Interpretation | None = None,
    input_groups: InputGroups | None = None,
    streams: bool = True,
) -> ShrinkPlan:
    """`make_plan` for a free interpretation, with the names and dimensions that parameters really have."""
    plan = make_plan(
        analysis, spare=spare, drop_inputs=drop_inputs, other=other, input_groups=input_groups, streams=streams
    )
    return replace(
        plan,
        cuts=_cuts(analysis, plan.cuts),
        folds=tuple(Fold(_name(analysis, fold.name), _stored(analysis, fold.name, fold.amount)) for fold in plan.folds),
        scales=_scales(analysis, plan),
    )


def _scales(analysis: Interpretation, plan: ShrinkPlan) -> tuple[Fold, ...]:
    """For the user's own forward, where fewer head dimensions would mean another scale of attention."""
    assert plan.kept is not None
    held: dict[str, tuple[nn.Module, int]] = {}
    for site in analysis.sites:
        for leaf, dim in (("weight", dims(site.module)[0]), ("bias", 0)):
            if getattr(site.module, leaf, None) is not None and not site.lookup:
                held[full_name(site.name, leaf)] = (site.module, dim)
    shifts: dict[str, Tensor] = {}
    for fold in plan.folds:
        shifts[fold.name] = shifts.get(fold.name, torch.zeros(())) + fold.amount
    amounts = scale_amounts(analysis.scaled, plan.kept, held, shifts)
    return tuple(Fold(_name(analysis, name), _stored(analysis, name, amount)) for name, amount in amounts.items())


def _name(analysis: Interpretation, name: str) -> str:
    return analysis.aliases[name].name if name in analysis.aliases else name


def _stored(analysis: Interpretation, name: str, amount: Tensor) -> Tensor:
    """What is added to a stand-in, as it lies in the parameter."""
    alias = analysis.aliases.get(name)
    if alias is None:
        return amount
    amount = amount.T if alias.swapped else amount
    if not alias.rows:
        return amount
    whole = torch.zeros(alias.rows, *amount.shape[1:], dtype=amount.dtype)
    whole[alias.start : alias.start + len(amount)] = amount
    return whole


def _cuts(analysis: Interpretation, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """Cuts of the parameters; parts of one parameter lose rows together, and the same columns once."""
    found: dict[tuple[str, int], Cut] = {}
    for cut in cuts:
        alias = analysis.aliases.get(cut.name)
        if alias is None:
            found[cut.name, cut.dim] = cut
            continue
        dim = alias.dim(cut.dim)
        keep = cut.keep
        if alias.rows and dim == 0:
            left = torch.zeros(alias.rows, dtype=torch.bool)
            before = found.get((alias.name, 0))
            left[torch.arange(alias.rows) if before is None else before.keep] = True
            size = len(_part(analysis, cut.name))
            kept = torch.zeros(size, dtype=torch.bool)
            kept[keep] = True
            left[alias.start : alias.start + size] &= kept
            keep = left.nonzero().flatten()
        found[alias.name, dim] = Cut(alias.name, dim, keep)
    return tuple(found.values())


def _part(analysis: Interpretation, name: str) -> Tensor:
    """The rows of a stand-in's weight or bias."""
    path, _, leaf = name.rpartition(".")
    module = next(site.module for site in analysis.sites if site.name == path)
    part = getattr(module, leaf)
    assert isinstance(part, Tensor)
    return part
