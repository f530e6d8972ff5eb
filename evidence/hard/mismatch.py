"""How far a surrogate gradient is from a true one: the rule's answer against flips of single units.

The true loss is piecewise constant in a unit's pre-activation x. Its smoothed form, the unit's own noise averaged out and
everything else held,

    L_σ(x) = E_ε L(h(x + ε)),  ε ~ N(0, σ²)        L_σ'(x) = Σ_k N(θ_k - x; 0, σ²) [L(level k + 1) - L(level k)]

has a gradient that is exact: the loss of one example is computed with the unit put to each of its levels in turn, all
layers above running. σ is in centred coordinates (half of it for a staircase, whose x runs from 0 to 1).

For a sample of units (of a convolution: of entries of its maps), over all examples given:

* `cosine`: of the surrogate ∂L/∂x with L_σ'(x). What the rule gets wrong in all.
* `linear`: of G = ∂L/∂h with the slope from the lowest to the highest level, (L(top) - L(bottom)) / range. What is wrong
  before the rule is asked: the gradient of the layers above is itself made of surrogates, and flips are no small steps.
* `agreement`: where that slope is not zero, how often the heuristic target t = sign(-G) is the better end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evidence.hard.flips import Losses, each_loss, evaluated
from paring.hard.units import Sign, Staircase, thresholds


@dataclass(frozen=True)
class Mismatch:
    """One hard layer, measured.

    Attributes:
        layer: name of the unit's module.
        cosine, linear, agreement: see above; NaN where nothing matters.
        matters: share of (unit, example) pairs where one of the levels changes the example's loss.
        pairs: how many pairs were looked at.
    """

    layer: str
    cosine: float
    linear: float
    agreement: float
    matters: float
    pairs: int


def mismatches(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float = 0.5,
    units: int = 16,
    seed: int = 0,
    losses: Losses = each_loss,
) -> list[Mismatch]:
    """Every `Sign` and `Staircase` of `net`, in the order of its modules, in eval mode; the network is left as it was.

    Args:
        net: a classifier.
        x, y: examples, batch first. Each is one row of every result.
        sigma: of the noise.
        units: how many units of each layer are looked at.
        seed: which ones.
        losses: (outputs, y) → (examples,).

    Raises:
        ValueError: a number is out of its range, or a hard unit runs more than once in a pass.
    """
    if not sigma > 0 or units < 1:
        raise ValueError(f"mismatches(sigma={sigma}, units={units}): both must be positive")
    with evaluated(net):
        hard = {name: m for name, m in net.named_modules() if isinstance(m, Sign | Staircase)}
        return [_measured(net, name, module, x, y, sigma, units, seed, losses) for name, module in hard.items()]


def _measured(
    net: nn.Module, name: str, module: Sign | Staircase, x: Tensor, y: Tensor, sigma: float, units: int, seed: int,
    losses: Losses,
) -> Mismatch:  # fmt: skip
    z, surrogate, gradient = _surrogates(net, name, module, x, y, losses)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(z.shape[1], generator=generator)[:units]
    levels, steps, width = _levels(module, sigma)
    rises = torch.tensor(steps, dtype=torch.float64, device=z.device)
    smooth, slope, matters = [], [], []
    for unit in chosen.tolist():
        with torch.no_grad():
            found = torch.stack([_put(net, name, module, x, y, unit, level, losses) for level in levels], 1).double()
        weight = torch.exp(-0.5 * ((rises - z[:, unit, None].double()) / width).square())
        smooth.append((weight * found.diff(dim=1)).sum(1))
        slope.append((found[:, -1] - found[:, 0]) / (levels[-1] - levels[0]))
        matters.append((found != found[:, :1]).any(1))
    true, ends = torch.stack(smooth, 1), torch.stack(slope, 1)
    g = gradient[:, chosen.to(z.device)].double()
    told = (ends != 0) & (g != 0)
    return Mismatch(
        layer=name,
        cosine=_cosine(surrogate[:, chosen.to(z.device)].double(), true),
        linear=_cosine(g, ends),
        agreement=float((g.sign() == ends.sign())[told].double().mean()),
        matters=float(torch.stack(matters).double().mean()),
        pairs=true.numel(),
    )


def _levels(module: Sign | Staircase, sigma: float) -> tuple[list[float], tuple[float, ...], float]:
    """Levels of a unit, the pre-activations where it rises, and the noise there."""
    if isinstance(module, Sign):
        return [-1.0, 1.0], (0.0,), sigma
    return [k / module.steps for k in range(module.steps + 1)], thresholds(module.steps), sigma / 2


def _surrogates(
    net: nn.Module, name: str, module: nn.Module, x: Tensor, y: Tensor, losses: Losses
) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, their surrogate gradients and those of the units, each (examples, entries)."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    with _hooked(module, keep), torch.enable_grad():
        given = x.detach().requires_grad_() if x.is_floating_point() else x
        total = losses(net(given), y).sum()
    if len(seen) != 1:
        raise ValueError(f"'{name}' runs {len(seen)} times in one pass; give every place an activation of its own")
    below, above = torch.autograd.grad(total, seen[0], allow_unused=True)
    z = seen[0][0].detach()
    found = (z, torch.zeros_like(z) if below is None else below, torch.zeros_like(z) if above is None else above)
    flat = [value.flatten(1) for value in found]
    return flat[0], flat[1], flat[2]


def _put(
    net: nn.Module, name: str, module: nn.Module, x: Tensor, y: Tensor, unit: int, level: float, losses: Losses
) -> Tensor:
    """Losses of all examples with one entry of the layer at this level."""

    def put(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        flat = output.flatten(1).clone()
        flat[:, unit] = level
        return flat.view(output.shape)

    with _hooked(module, put):
        return losses(net(x), y)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor | None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _cosine(a: Tensor, b: Tensor) -> float:
    size = a.norm() * b.norm()
    return float((a * b).sum() / size) if size > 0 else float("nan")
