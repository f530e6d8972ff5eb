"""Plans where sizes in the forward may change: what they mean for loose parameters and for the scale of attention."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

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
) -> ShrinkPlan:
    """`make_plan` for a free interpretation, with the names and dimensions that parameters really have."""
    plan = make_plan(analysis, spare=spare, drop_inputs=drop_inputs, other=other, input_groups=input_groups)
    return replace(
        plan,
        cuts=tuple(_cut(analysis, cut) for cut in plan.cuts),
        folds=tuple(replace(fold, name=_name(analysis, fold.name)) for fold in plan.folds),
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
        shifts[fold.name] = fold.amount
    amounts = scale_amounts(analysis.scaled, plan.kept, held, shifts)
    return tuple(Fold(_name(analysis, name), _stored(analysis, name, amount)) for name, amount in amounts.items())


def _name(analysis: Interpretation, name: str) -> str:
    return analysis.aliases[name].name if name in analysis.aliases else name


def _stored(analysis: Interpretation, name: str, amount: Tensor) -> Tensor:
    return amount.T if name in analysis.aliases and analysis.aliases[name].swapped else amount


def _cut(analysis: Interpretation, cut: Cut) -> Cut:
    alias = analysis.aliases.get(cut.name)
    return cut if alias is None else Cut(alias.name, 1 - cut.dim if alias.swapped else cut.dim, cut.keep)
