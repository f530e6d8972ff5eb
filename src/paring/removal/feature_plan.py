"""What becomes of LayerNorms and RMSNorms over units when some of these, always zero, go: see `analysis.feature_norms`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from paring.analysis.interpret import Interpretation
from paring.analysis.liveness import Reader
from paring.analysis.weights import columns_of, dims


@dataclass
class FeatureChanges:
    """added: tensor -> what is added to it before cuts. cut: tensor -> which entries stay. numbers: attribute -> number.

    padded: LayerNorm -> how many features it counts.
    """

    added: dict[str, Tensor] = field(default_factory=dict)
    cut: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    padded: dict[str, int] = field(default_factory=dict)


def feature_changes(analysis: Interpretation, kept: Tensor) -> FeatureChanges:
    """What changes in the norms themselves. kept (ids + 1,): which units stay."""
    found = FeatureChanges()
    for norm in analysis.features:
        stays = kept[norm.labels]
        if bool(stays.all()):
            continue
        share = len(stays) / int(stays.sum())
        if norm.centred:
            found.padded[norm.name] = len(stays)
        else:
            found.added[norm.weight] = ((share if norm.response else share**0.5) - 1) * norm.gamma
            if norm.number:
                found.numbers[norm.number] = norm.eps * share
        if not norm.loose:
            found.cut[norm.weight] = stays
            if getattr(norm.module, "bias", None) is not None:
                found.cut[norm.weight.removesuffix("weight") + "bias"] = stays
    return found


def moved_columns(reader: Reader, kept: Tensor, needed: Tensor) -> tuple[Tensor, Tensor] | None:
    """What is added to weight and bias of a linear layer behind a LayerNorm; None for nothing.

    Behind the norm a unit that goes is γ t + β, where t is minus the sum of the normalised features that stay over the number
    of those that go.
    """
    site, norm = reader.site, reader.site.behind
    if norm is None or not bool(reader.moves.any()):
        return None
    stays = kept[site.columns]
    gone = reader.moves & ~stays
    if not bool(gone.any()):
        return None
    columns = columns_of(site.module, gone) * needed[site.units][:, None]
    slope = columns @ norm.gamma[gone] / int((~stays).sum())
    share = torch.where(stays, 1 / norm.gamma, 0.0)
    shift = columns @ norm.beta[gone] + slope * (share * norm.beta).sum()
    amount = -slope[:, None] * share
    return amount if dims(site.module)[0] == 0 else amount.T, shift
