"""How good the target heuristic t = sign(-G) is: single outputs moved to their targets, and whole layers.

For one hard layer of a trained (or untrained) network, in eval mode, with the loss of each example:

* pairs of an example and a unit are drawn. The unit's output is put one level up and one level down (for a sign unit +1
  and -1) while all layers above run. The target is right when its side has the lower loss; a random target is right
  half of the time. `captured` = sum of L(other side) - L(target side) over the sum of the sizes of these differences: 1 for
  a perfect heuristic, 0 for random targets, -1 for the worst. Both also by |G|, from the smallest to the largest part;
* targets are adopted: in every example the outputs with the largest |G| that are not at their targets move there, a
  share of the layer at a time, against as many random moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from evidence.hard.flips import Losses, each_loss, evaluated, gradients, level, losses_with
from paring.hard.gradient_rules import targets


@dataclass(frozen=True)
class Adopted:
    """Mean losses after a share of a layer moved.

    Args:
        share: of the layer's outputs, at least one output of every example.
        targets: loss when the outputs of largest |G| moved to their targets.
        random: loss when as many random ones moved.
    """

    share: float
    targets: float
    random: float


@dataclass(frozen=True)
class TargetQuality:
    """One hard layer, measured; None where nothing was to be measured.

    Args:
        layer: name of the unit's module.
        right: share of the pairs that matter and have a target where the target's side has the lower loss.
        captured: see the module.
        right_by_size, captured_by_size: the same by |G|, from the smallest to the largest part.
        matters: share of the pairs where the two sides differ in loss.
        ignored: share of the pairs whose target is 0.
        pairs: how many were drawn.
        loss: mean loss of the examples as they are.
        adopted: by share.
    """

    layer: str
    right: float | None
    captured: float | None
    right_by_size: tuple[float | None, ...]
    captured_by_size: tuple[float | None, ...]
    matters: float
    ignored: float
    pairs: int
    loss: float
    adopted: tuple[Adopted, ...]


def target_quality(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    pairs: int = 2000,
    parts: int = 4,
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    losses: Losses = each_loss,
    seed: int = 0,
) -> tuple[TargetQuality, ...]:
    """Every `Sign` and `Staircase` of `net`, in the order in which they run; the network is left as it was.

    Args:
        net: any network whose loss falls apart into examples.
        x, y: examples, batch first.
        pairs: of an example and a unit, drawn in each layer.
        parts: into which they are divided by |G|, equal in size.
        shares: of a layer to be moved to its targets.
        losses: (outputs, y) → (examples,).
        seed: of the pairs and of random moves.

    Raises:
        ValueError: a number out of range, no hard units, or one that runs more than once.
    """
    if pairs < parts or parts < 1 or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"pairs={pairs}, parts={parts}, shares={shares}: at least one pair a part, shares in (0, 1]")
    with evaluated(net):
        now, layers = gradients(net, x, y, losses)
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            _quality(net, name, module, h, g, now, x, y, pairs, parts, shares, losses, generator)
            for name, module, h, g in layers
        )


def _quality(
    net: nn.Module, name: str, module: nn.Module, h: Tensor, g: Tensor, now: Tensor, x: Tensor, y: Tensor, pairs: int,
    parts: int, shares: Sequence[float], losses: Losses, generator: torch.Generator,
) -> TargetQuality:  # fmt: skip
    flat, slopes = h.flatten(1), g.flatten(1)
    example = torch.randint(len(x), (pairs,), generator=generator).to(x.device)
    unit = torch.randint(flat.shape[1], (pairs,), generator=generator).to(x.device)
    size = slopes[example, unit].abs()
    order = size.argsort(stable=True)
    example, unit, size = example[order], unit[order], size[order]
    sides = []
    for way in (1, -1):
        moved = flat[example]
        moved[torch.arange(pairs, device=x.device), unit] = level(module, flat[example, unit], way)
        sides.append(losses_with(net, module, moved.reshape(-1, *h.shape[1:]), x[example], y[example], losses))
    t = targets(slopes[example, unit]).double()
    gain = t * (sides[1] - sides[0]).double()  # L(other side) - L(target side)
    size_of = (sides[1] - sides[0]).abs().double()
    cuts = [pairs * part // parts for part in range(parts + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(cuts)]
    return TargetQuality(
        layer=name,
        right=_right(gain),
        captured=_captured(gain, size_of),
        right_by_size=tuple(_right(gain[part]) for part in slices),
        captured_by_size=tuple(_captured(gain[part], size_of[part]) for part in slices),
        matters=float((size_of > 0).double().mean()),
        ignored=float((t == 0).double().mean()),
        pairs=pairs,
        loss=float(now.mean()),
        adopted=tuple(_adopted(net, module, h, slopes, x, y, share, losses, generator) for share in shares),
    )


def _right(gain: Tensor) -> float | None:
    told = gain[gain != 0]
    return float((told > 0).double().mean()) if len(told) else None


def _captured(gain: Tensor, size: Tensor) -> float | None:
    whole = size[gain != 0].sum()
    return float(gain.sum() / whole) if whole > 0 else None


def _adopted(
    net: nn.Module, module: nn.Module, h: Tensor, slopes: Tensor, x: Tensor, y: Tensor, share: float, losses: Losses,
    generator: torch.Generator,
) -> Adopted:  # fmt: skip
    flat, t = h.flatten(1), targets(slopes)
    aim = torch.where(t > 0, level(module, flat, 1), level(module, flat, -1))
    movable = (t != 0) & (aim != flat)
    count = torch.minimum(
        movable.sum(1), torch.full((len(flat),), max(1, round(share * flat.shape[1])), device=x.device)
    )
    ranked = torch.where(movable, slopes.abs(), -1.0)
    anywhere = torch.rand(flat.shape, generator=generator).to(device=x.device, dtype=flat.dtype)
    up, down = level(module, flat, 1), level(module, flat, -1)
    other = torch.where(up == flat, down, up)
    means = []
    for score, value in ((ranked, aim), (anywhere, other)):
        place = score.argsort(dim=1, descending=True).argsort(dim=1)
        moved = torch.where(place < count[:, None], value, flat)
        means.append(float(losses_with(net, module, moved.reshape(h.shape), x, y, losses).mean()))
    return Adopted(share, *means)
