"""What closing a unit costs the loss, before anything is trained: the order in which units go.

They are comparable between layers. g_u is the gradient of an example's loss by the gate of unit u.

    Fisher     ½ E[g_u²]                                      (Theis et al. 2018; Molchanov et al. 2019)
    Taylor     |E g_u|                                        (Molchanov et al. 2017)
    Magnitude  squared norm of the unit's weights over the mean of its layer     (Li et al. 2017); of branches all alike
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paring.core.default_loss import Loss, scalar
from paring.pruning.calls import Calls
from paring.pruning.gated import GatedCopy


class Importance(Protocol):
    """A way to judge units."""

    def look(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
        """What closing each unit of this network costs, (units,), judged on these batches."""
        ...


def gradients(gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
    """Derivatives of each example's loss by every gate, (examples, units), float32.

    Where an operation mixes examples, or a layer takes no gates of single examples, a row is the mean of a batch.

    Raises:
        ValueError: the loss is no scalar, not finite, or does not depend on the network.
    """
    rows: list[Tensor] = []
    flags = [(p, p.requires_grad) for p in gated.net.parameters()]
    gated.probing(True)
    calls = Calls()
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for batch in batches:
            with calls.of(gated.net):
                value = scalar(loss(gated.net, batch))
                count = (calls.inputs.batch if calls.inputs is not None and calls.count == 1 else None) or 1
            if not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the network's output by a gradient: loss(net, batch) must not detach it "
                    "or run under torch.no_grad"
                )
            if not bool(value.isfinite()):
                raise ValueError(
                    f"the loss of the network as given is {float(value.detach())}: it has to be finite to judge by"
                )
            value.backward()
            parts = [gate.take(count).flatten(1) for gate in gated.gates]
            if any(len(part) != count for part in parts):
                parts, count = [part.sum(0, keepdim=True) for part in parts], 1
            rows.append(torch.cat(parts, 1).float().cpu() * count)
    finally:
        gated.probing(False)
        for p, flag in flags:
            p.requires_grad_(flag)
    return torch.cat(rows)


@dataclass(frozen=True)
class Fisher:
    """½ E[g²]."""

    def look(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
        return 0.5 * gradients(gated, batches, loss).square().mean(0)


@dataclass(frozen=True)
class Taylor:
    """|E g|."""

    def look(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
        return gradients(gated, batches, loss).mean(0).abs()


@dataclass(frozen=True)
class Magnitude:
    """Squared norm of a unit's weights, over the mean of its group."""

    def look(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
        return torch.cat([_norms(gated, number) for number in range(len(gated.sites))])


@torch.no_grad()
def _norms(gated: GatedCopy, number: int) -> Tensor:
    """Squared norms of what each gate of this site multiplies: rows of its layers."""
    site, found = gated.sites[number], torch.zeros(gated.gates[number].mask.numel())
    if site.kind == "blocks":  # weights tell nothing of a branch against another
        return torch.ones_like(found)
    modules = dict(gated.net.named_modules())
    for name in site.layers:
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        layer = gated.wiring.layer(name)
        along = weight.movedim(1, 0) if "transpose" in layer.kind else weight
        rows = along.reshape(along.shape[0], -1).square().sum(1).float().cpu()
        if len(rows) != layer.outputs:
            continue
        ids = gated.entries(number)[name]
        here = ids >= 0
        found.index_add_(0, ids[here], rows[here])
    return found / found.mean().clamp(min=1e-30)
