"""What closing a unit costs the loss, before anything is trained: the order in which units go.

They are comparable between layers. g_u is the gradient of an example's loss by the gate of unit u.

    Fisher     ½ E[g_u²], where slopes vanish ½ E[Jᵀ C J]_uu   (Theis et al. 2018; Molchanov et al. 2019)
    Taylor     |E g_u|                                        (Molchanov et al. 2017)
    Magnitude  squared norm of the unit's weights over the mean of its layer     (Li et al. 2017); of branches all alike
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paring.core import validate
from paring.core.default_loss import Loss, scalar
from paring.core.gauss_newton import products
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
    with _probing(gated) as calls:
        for batch in batches:
            with calls.of(gated.net):
                value = scalar(loss(gated.net, batch))
                count = _examples(calls)
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
            found, count = _joined([gate.take(count) for gate in gated.gates], count)
            rows.append(found * count)
    return torch.cat(rows)


def curvatures(gated: GatedCopy, batches: Iterable[Any], loss: Loss, probes: int = 4) -> Tensor:
    """Second derivatives of each example's loss by every gate, (examples, units), float32, estimated; see `gauss_newton`.

    A row is for what a row of `gradients` is. No rows where the loss has no curvature in what the network answers.

    Args:
        gated: a network.
        batches: to judge on.
        loss: of a network on a batch.
        probes: random directions for each batch.
    """
    rows: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    with _probing(gated) as calls:
        for batch in batches:
            with calls.of(gated.net):
                found = list(products(gated.net, _checked(loss), batch, lambda: _noted(gated), generator, probes))
                count = _examples(calls)
            for one in found:
                if one.bent:
                    left, _ = _joined(_of_gates(gated, one.left, count), count)
                    right, many = _joined(_of_gates(gated, one.right, count), count)
                    rows.append(left * right * many)
            for gate in gated.gates:
                gate.take(count)
    return torch.cat(rows) if rows else torch.zeros(0, gated.units)


def steepness(gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> float:
    """The steepness of the loss in what the network answers, see `gauss_newton`; infinity where it is not known."""
    generator = torch.Generator().manual_seed(0)
    with _probing(gated):
        found = [
            one.steepness for batch in batches for one in products(gated.net, _checked(loss), batch, list, generator, 4)
        ]
    return sum(found) / len(found) if found else math.inf


@contextmanager
def _probing(gated: GatedCopy) -> Iterator[Calls]:
    """While this is on, the gates note what they show, and the weights need no gradients."""
    flags = [(p, p.requires_grad) for p in gated.net.parameters()]
    gated.probing(True)
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield Calls()
    finally:
        gated.probing(False)
        for p, flag in flags:
            p.requires_grad_(flag)


def _checked(loss: Loss) -> Loss:
    return lambda net, batch: scalar(loss(net, batch))


def _examples(calls: Calls) -> int:
    """How many examples the network was called with; 1 where rows cannot be told apart."""
    return (calls.inputs.batch if calls.inputs is not None and calls.count == 1 else None) or 1


def _joined(parts: Sequence[Tensor], count: int) -> tuple[Tensor, int]:
    """The gates' rows side by side, (rows, units), and how many rows: `count`, or one where some gate cannot tell them apart."""
    flat = [part.flatten(1) for part in parts]
    if any(len(part) != count for part in flat):
        flat, count = [part.sum(0, keepdim=True) for part in flat], 1
    return torch.cat(flat, 1).float().cpu(), count


def _noted(gated: GatedCopy) -> list[Tensor]:
    return [shown for gate in gated.gates for shown in gate.noted()]


def _of_gates(gated: GatedCopy, found: Sequence[Tensor | None], count: int) -> list[Tensor]:
    """Derivatives by what is `_noted`, as rows of each gate."""
    left = iter(found)
    return [gate.rows(list(islice(left, len(gate.noted()))), count) for gate in gated.gates]


@dataclass(frozen=True)
class Fisher:
    """½ E[g²]; where the loss has next to no slope left, half of the curvature.

    For a loss that is a likelihood both are the same in the mean. Where the network answers what it is taught, as with a
    distance to its own answers or examples known by heart, slopes vanish and tell nothing, and the curvature does not.

    Args:
        flat: a steepness (`gauss_newton`) below which slopes are not gone by; 0 always goes by slopes.

    Raises:
        ValueError: flat is negative.
    """

    flat: float = 0.1

    def __post_init__(self) -> None:
        validate.not_negative(self, "flat")

    def look(self, gated: GatedCopy, batches: Iterable[Any], loss: Loss) -> Tensor:
        batches = list(batches)
        if self.flat and steepness(gated, batches[:1], loss) < self.flat:
            return 0.5 * curvatures(gated, batches, loss).mean(0).clamp(min=0)
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
