"""Masks from scores for the sites of a network: which weights stay, also when the network shrinks while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paring import select
from paring.core import kind_of
from paring.gates import Site, gate_of, masks_of


def chosen(
    net: nn.Module,
    found: Sequence[Site],
    scores: Mapping[str, Tensor],
    density: float,
    allocation: select.Allocation,
    structure: select.Structure,
) -> dict[str, Tensor]:
    """What stays: one boolean mask per layer.

    The density is of the network as it was before anything was cut out of it; what was cut ranks last. Where fewer weights are
    open than may stay, closed ones are among the masks (`narrowed` leaves them out). Structures know weights as (outputs, inputs,
    ...), so those of embeddings are turned for them.

    Args:
        net: the network with its gates.
        found: the sites to decide on.
        scores: by layer, of the shape of its weight; higher is kept first.
        density: share of the weights (with a structure, of its pieces) that stays.
        allocation: how the layers share it.
        structure: what is kept or closed together.
    """
    gates = {site.layer: gate_of(net, site) for site in found}
    turned = {
        site.layer
        for site in found
        if (kind := kind_of(net.get_submodule(site.module))) is not None
        and kind.unit_dim == 1
        and structure != select.Weights()
    }
    dense = {}
    for layer, gate in gates.items():
        score = scores[layer].detach()
        if gate.dense_shape != gate.shape:
            left = gate.whole(torch.ones_like(score)) > 0
            score = put_last(gate.whole(score), ~left)
        dense[layer] = score.T if layer in turned else score
    masks = select.masks(dense, density, allocation, structure)
    return {layer: gates[layer].part(mask.T if layer in turned else mask) for layer, mask in masks.items()}


def narrowed(
    net: nn.Module,
    found: Sequence[Site],
    scores: Mapping[str, Tensor],
    density: float,
    allocation: select.Allocation,
    structure: select.Structure,
) -> dict[str, Tensor]:
    """What stays of what is open now, as in `chosen`; what is closed stays closed, and scores, magnitudes, decide on the rest."""
    open_now = masks_of(net, found)
    scores = {name: put_last(score, ~open_now[name]) for name, score in scores.items()}
    masks = chosen(net, found, scores, density, allocation, structure)
    return {name: mask & open_now[name] for name, mask in masks.items()}


def put_last(score: Tensor, where: Tensor) -> Tensor:
    """Scores below every magnitude at these places, that add nothing to the sum over a piece; not in half precision."""
    score = score.detach().float() if score.dtype in (torch.float16, torch.bfloat16) else score.detach()
    return score.masked_fill(where, -torch.finfo(score.dtype).tiny)
