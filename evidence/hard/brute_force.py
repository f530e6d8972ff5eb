"""The targets of a narrow layer of sign units against all 2^units patterns that it could output, example by example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evidence.hard.flips import Losses, each_loss, evaluated, gradients, losses_with
from paring.hard.gradient_rules import targets
from paring.hard.units import Sign


@dataclass(frozen=True)
class BruteForce:
    """One narrow layer of sign units against all its patterns; means over examples.

    Args:
        layer: name of the unit's module.
        agreement: share of the outputs where the pattern of targets agrees with the nearest best pattern.
        kept: the same for the outputs as they are.
        loss, targets, best, random: of the pattern as it is, of the targets, of the best, and of all on average.
        beaten: share of the patterns whose loss is not below that of the targets.
    """

    layer: str
    agreement: float
    kept: float
    loss: float
    targets: float
    best: float
    random: float
    beaten: float


def brute_force(
    net: nn.Module, x: Tensor, y: Tensor, layer: str, *, losses: Losses = each_loss, most: int = 12
) -> BruteForce:
    """Targets of one layer against all patterns that it could output.

    Args:
        net, x, y, losses: as of `target_quality`.
        layer: name of a `Sign` module.
        most: units, above which it is refused.

    Raises:
        ValueError: no such sign units, or too many of them.
    """
    with evaluated(net):
        now, layers = gradients(net, x, y, losses)
        found = {name: (module, h, g) for name, module, h, g in layers if isinstance(module, Sign)}
        if layer not in found or found[layer][1][0].numel() > most:
            sizes = {name: h[0].numel() for name, (_, h, _) in found.items()}
            raise ValueError(f"{layer!r} is no layer of at most {most} sign units; units of each layer: {sizes}")
        module, h, g = found[layer]
        flat, t = h.flatten(1), targets(g).flatten(1)
        units = flat.shape[1]
        bits = (torch.arange(2**units, device=x.device)[:, None] >> torch.arange(units, device=x.device)) & 1
        patterns = (2 * bits - 1).to(h.dtype)
        tried = torch.stack(
            [losses_with(net, module, row.expand(len(x), -1).reshape(h.shape), x, y, losses) for row in patterns], dim=1
        )
        aim = torch.where(t == 0, flat, t)
        reached = losses_with(net, module, aim.reshape(h.shape), x, y, losses)
        best = tried.min(dim=1).values
        optimal = tried <= best[:, None] + 1e-12
        return BruteForce(
            layer=layer,
            agreement=_nearest(aim, patterns, optimal),
            kept=_nearest(flat, patterns, optimal),
            loss=float(now.mean()),
            targets=float(reached.mean()),
            best=float(best.mean()),
            random=float(tried.mean()),
            beaten=float((tried >= reached[:, None] - 1e-12).double().mean()),
        )


def _nearest(rows: Tensor, patterns: Tensor, optimal: Tensor) -> float:
    """Mean over examples of the share of outputs that agree with the nearest of its optimal patterns."""
    shares = ((rows @ patterns.T) / rows.shape[1] + 1) / 2
    return float(shares.masked_fill(~optimal, 0.0).max(dim=1).values.double().mean())
