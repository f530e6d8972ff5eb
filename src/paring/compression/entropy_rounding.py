"""Scalar rounding with a learned entropy penalty.

After Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020.

Every weight is s q, q = round(theta / s), with a latent theta and a step s for each tensor. Learned together, by descent on

    L(s q) + rate * sum_i -log2 P(q_i)

Gradients pass the rounding straight through for the loss; the bits are those of theta / s with uniform noise in place of
the rounding, under a density learned for each tensor: a mixture of two zero-mean Laplace distributions,

    P(q) = F(q + 1/2) - F(q - 1/2).

Where we differ: the paper's decoder is a learned linear map of groups of latents and its density a small network; here
every weight has its own latent. The paper draws the noise; we take its mean. A tensor has one density, so the mean bits are
one function of |theta / s|: computed on a grid, its slope is looked up for every weight. Densities move every tenth step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tensors import weights_of
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms

RESOLUTION = 16
"""Grid points in a step; even."""
FARTHEST = 4096
"""Steps that the grid reaches; the bits of latents farther out rise as at its end."""
REFRESH = 10
"""Descent steps from one step of the densities to the next."""


class Latent:
    """Latents of one weight tensor, in units of the tensor's first step.

    Attributes:
        theta: latents.
        log_step: logarithm of the step in these units.
        scales: logarithms of the two scales of the density, in units of the step.
        mixture: logit of the first part.
        scaled: theta over the step, as of the last `rounded`.
        q: the same, rounded.
    """

    def __init__(self, weight: Tensor, step: float) -> None:
        self.first = step
        self.theta = (weight.detach() / step).requires_grad_()
        self.log_step = weight.new_zeros((), requires_grad=True)
        spread = float(self.theta.detach().abs().mean())
        self.scales = weight.new_tensor([math.log(0.3), math.log(max(spread, 0.3) * 2)], requires_grad=True)
        self.mixture = weight.new_zeros((), requires_grad=True)
        self.held = weight.detach() == 0
        self.scaled = self.theta.detach().clone()
        self.q = self.scaled.round()
        self._slope = weight.new_zeros(1)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weights s q."""
        step = self.log_step.exp()
        torch.div(self.theta, step, out=self.scaled)
        torch.round(self.scaled, out=self.q)
        return self.q * (step * self.first)

    @torch.no_grad()
    def follow(self, grad: Tensor, rate: float, refresh: bool) -> None:
        """Set the gradients of L + rate * bits.

        Args:
            grad: dL / d(s q), the shape of the weights.
            rate: price of a bit.
            refresh: whether the density learns, too; its slope is the last one otherwise.
        """
        step = self.log_step.exp()
        through = grad * self.first
        moved = torch.dot(through.flatten(), (self.q - self.scaled).flatten()) * step
        self.scales.grad = self.mixture.grad = None
        if rate:
            place = self.scaled.abs().mul_(RESOLUTION).round_().clamp_max_(FARTHEST * RESOLUTION).int().flatten()
            if refresh:
                self._refresh(place.clamp_min_(0), rate)  # what is no number becomes 0
            place.clamp_(0, len(self._slope) - 1)
            slopes = self._slope.index_select(0, place).view_as(grad).copysign_(self.scaled).mul_(rate)
            moved -= torch.dot(slopes.flatten(), self.scaled.flatten())
            through.add_(slopes.div_(step))
        self.theta.grad, self.log_step.grad = through, moved

    def _refresh(self, place: Tensor, rate: float) -> None:
        """Bits by distance from zero, and the gradients of the density.

        Args:
            place: (weights,) |theta / s| in units of the grid.
            rate: price of a bit.
        """
        counts = torch.bincount(place)
        reach = -(-len(counts) // RESOLUTION)
        with torch.enable_grad():
            bits = mean_bits(reach, self.scales, self.mixture)
            total = rate * torch.dot(counts.to(bits.dtype), bits[: len(counts)])
            self.scales.grad, self.mixture.grad = torch.autograd.grad(total, [self.scales, self.mixture])
        self._slope = torch.gradient(bits.detach(), spacing=1 / RESOLUTION)[0]
        self._slope[0] = 0.0


def mean_bits(reach: int, scales: Tensor, mixture: Tensor) -> Tensor:
    """Bits of x + u, in the mean over u in [-1/2, 1/2], for x = 0, 1/RESOLUTION, ..., reach.

    Args:
        reach: largest x.
        scales: see `likelihood_bits`.
        mixture: see `likelihood_bits`.
    """
    points = torch.arange((reach + 1) * RESOLUTION, dtype=scales.dtype, device=scales.device)
    bits = likelihood_bits((points + 0.5) / RESOLUTION - 0.5, scales, mixture)
    return F.avg_pool1d(bits[None], RESOLUTION, 1)[0]


def likelihood_bits(value: Tensor, scales: Tensor, mixture: Tensor) -> Tensor:
    """-log2 of the probability of the unit interval around a value under the mixture of two Laplace distributions.

    Args:
        value: any shape.
        scales: (2,) logarithms of the scales.
        mixture: logit of the first part.
    """
    size, share = value.abs(), mixture.sigmoid()
    found = share * _mass(size, scales[0].exp()) + (1 - share) * _mass(size, scales[1].exp())
    return -(found + 1e-12).log2()


def _mass(size: Tensor, scale: Tensor) -> Tensor:
    """F(x + 1/2) - F(x - 1/2) of a Laplace distribution, x >= 0."""
    upper = 0.5 * torch.exp(-(size + 0.5) / scale)
    below = (size - 0.5) / scale
    lower = torch.where(below >= 0, 0.5 * torch.exp(-below.clamp_min(0)), 1 - 0.5 * torch.exp(below.clamp_max(0)))
    return lower - upper


@dataclass(frozen=True)
class EntropyRounding(Compressor):
    """Scalar rounding with an entropy penalty.

    Args:
        rates: prices of a bit, in units of the loss, one training after the other; the lowest first, until the bound breaks.
        epochs: of the training at each price.
        step: first step, in units of each tensor's root mean square weight.
        keep_zeros: weights that are zero at the start stay zero.
        lr: learning rate of all that is trained; five times the training's by default, for latents have whole steps to go.
        patience: so many prices in a row may break the bound before it ends: on validation data a higher one can be better.

    Raises:
        ValueError: a number out of its range.
    """

    rates: tuple[float, ...] = (3e-7, 1e-6, 3e-6)
    epochs: float = 5.0
    step: float = 1.0
    keep_zeros: bool = False
    lr: float | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        positive = self.epochs > 0 and self.step > 0 and self.patience >= 0 and (self.lr is None or self.lr > 0)
        if not self.rates or min(self.rates) < 0 or not positive:
            raise ValueError(
                f"EntropyRounding(rates={self.rates}, epochs={self.epochs}, step={self.step}, lr={self.lr}, "
                f"patience={self.patience}): out of range"
            )

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        net = working_copy(task.net)
        weights = weights_of(net)
        sizes = {name: float(w.detach()[w.detach() != 0].square().mean().sqrt()) for name, w in weights.items()}
        latents = {n: Latent(w, self.step * sizes[n]) for n, w in weights.items() if sizes[n] > 0}
        own = {id(weight) for weight in weights.values()}  # what is zero throughout stays
        others = [p for p in net.parameters() if id(p) not in own and p.requires_grad]
        rate = 5 * task.training.lr if self.lr is None else self.lr
        densities = [p for one in latents.values() for p in (one.scales, one.mixture)]
        steps = [one.log_step for one in latents.values()]
        broken = 0
        for number, price in enumerate(sorted(self.rates)):
            groups = [{"params": others, "lr": rate}, {"params": densities, "lr": 3e-2}, {"params": steps, "lr": 1e-2}]
            groups += [{"params": [one.theta], "lr": rate / (self.step * sizes[name])} for name, one in latents.items()]
            descent = Descent(task.training, groups, self.epochs, first=round(number * self.epochs))
            self._learn(net, weights, latents, descent, price)
            estimate_norms(net, task.training)
            broken = 0 if task.offer(_narrow(net, latents), rate=price).within else broken + 1
            if broken > self.patience:
                return

    def _learn(
        self,
        net: nn.Module,
        weights: dict[str, nn.Parameter],
        latents: dict[str, Latent],
        descent: Descent,
        price: float,
    ) -> None:
        def before() -> None:
            for name, one in latents.items():
                grad = weights[name].grad
                one.follow(torch.zeros_like(one.theta) if grad is None else grad, price, descent.step % REFRESH == 0)
                if self.keep_zeros and one.theta.grad is not None:
                    one.theta.grad.masked_fill_(one.held, 0.0)
                weights[name].grad = None

        def after() -> None:
            with torch.no_grad():
                for name, one in latents.items():
                    weights[name].copy_(one.rounded())

        after()
        descent.run(net, before=before, after=after)


@torch.no_grad()
def _narrow(net: nn.Module, latents: dict[str, Latent]) -> nn.Module:
    """A copy whose weights are values that float16 holds, where it can."""
    twin = working_copy(net)
    for name in latents:
        weight = twin.get_parameter(name)
        narrow = weight.half().to(weight.dtype)
        if bool(narrow.isfinite().all()):
            weight.copy_(narrow)
    return twin
