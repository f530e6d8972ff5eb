"""Scalar rounding with a learned entropy penalty (after Oktay et al., "Scalable Model Compression by Entropy Penalized
Reparameterization", ICLR 2020).

Every weight is s q, q = round(theta / s), with a latent theta and a step s for each tensor. Learned together, by descent on

    L(s q) + rate * sum_i -log2 P(q_i)

Gradients pass the rounding straight through for the loss; the bits are those of theta / s with uniform noise in place of
the rounding, under a density learned for each tensor: a mixture of two zero-mean Laplace distributions,

    P(q) = F(q + 1/2) - F(q - 1/2).

Where we differ: the paper's decoder is a learned linear map of groups of latents and its density a small network; here
every weight has its own latent, and bits are estimated on a random part of the weights in every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.codec.compressors.task import Compressor, Task, working_copy
from paring.codec.compressors.tensors import weights_of
from paring.codec.compressors.training import Descent
from paring.codec.compressors.tuning import estimate_norms


class Latent:
    """Latents of one weight tensor, in units of the tensor's first step.

    Attributes:
        theta: latents.
        log_step: logarithm of the step in these units.
        scales: logarithms of the two scales of the density, in units of the step.
        mixture: logit of the first part.
    """

    def __init__(self, weight: Tensor, step: float) -> None:
        device = weight.device
        self.first = step
        self.theta = (weight.detach() / step).requires_grad_()
        self.log_step = torch.zeros((), device=device, requires_grad=True)
        spread = float(self.theta.detach().abs().mean())
        self.scales = torch.tensor([math.log(0.3), math.log(max(spread, 0.3) * 2)], device=device, requires_grad=True)
        self.mixture = torch.zeros((), device=device, requires_grad=True)
        self.held = weight.detach() == 0

    def bits(self, part: float, generator: torch.Generator) -> Tensor:
        """Estimated bits of all entries, from a random part of them."""
        flat = self.theta.flatten()
        count = max(1, round(part * len(flat)))
        rows = torch.randint(len(flat), (count,), generator=generator).to(flat.device) if part < 1 else slice(None)
        noise = torch.rand(count if part < 1 else len(flat), generator=generator).to(flat.device) - 0.5
        return likelihood_bits(flat[rows] / self.log_step.exp() + noise, self.scales, self.mixture).mean() * len(flat)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """q, and the weights s q."""
        step = self.log_step.detach().exp()
        q = (self.theta.detach() / step).round()
        return q, q * (step * self.first)


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
        part: share of the weights whose bits are estimated in a step, in (0, 1].
        keep_zeros: weights that are zero at the start stay zero.
        lr: learning rate of the weights; the training's by default.
        seed: of noise and parts.

    Raises:
        ValueError: a number out of its range.
    """

    rates: tuple[float, ...] = (3e-7, 1e-6, 3e-6)
    epochs: float = 5.0
    step: float = 0.3
    part: float = 0.25
    keep_zeros: bool = False
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) < 0 or not (self.epochs > 0 and self.step > 0 and 0 < self.part <= 1):
            raise ValueError(
                f"EntropyRounding(rates={self.rates}, epochs={self.epochs}, step={self.step}, part={self.part}): out of range"
            )

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        net = working_copy(task.net)
        weights = weights_of(net)
        sizes = {name: float(w.detach()[w.detach() != 0].square().mean().sqrt()) for name, w in weights.items()}
        latents = {n: Latent(w, self.step * sizes[n]) for n, w in weights.items() if sizes[n] > 0}
        own = {id(weights[name]) for name in latents}
        others = [p for p in net.parameters() if id(p) not in own and p.requires_grad]
        rate = task.training.lr if self.lr is None else self.lr
        generator = torch.Generator().manual_seed(self.seed)
        for number, price in enumerate(sorted(self.rates)):
            groups = [{"params": others, "lr": rate}]
            for name, one in latents.items():
                groups.append({"params": [one.theta], "lr": rate / (self.step * sizes[name])})
                groups.append({"params": [one.log_step, one.scales, one.mixture], "lr": 1e-2})
            first = round(number * self.epochs)
            descent = Descent(task.training, groups, self.epochs, first=first)
            self._learn(net, weights, latents, descent, price, generator)
            estimate_norms(net, task.training)
            if not task.offer(_narrow(net, latents), rate=price).within:
                return

    def _learn(
        self,
        net: nn.Module,
        weights: dict[str, nn.Parameter],
        latents: dict[str, Latent],
        descent: Descent,
        price: float,
        generator: torch.Generator,
    ) -> None:
        def penalty() -> Tensor | None:
            bits = [one.bits(self.part, generator) for one in latents.values()]
            return price * torch.stack(bits).sum() if bits and price else None

        def before() -> None:
            for name, one in latents.items():
                grad = weights[name].grad
                if grad is None:
                    continue
                step = one.log_step.detach().exp()
                through = grad * one.first
                one.theta.grad = through if one.theta.grad is None else one.theta.grad + through
                scaled = one.theta.detach() / step
                moved = (through * (scaled.round() - scaled)).sum() * step
                one.log_step.grad = moved if one.log_step.grad is None else one.log_step.grad + moved
                if self.keep_zeros:
                    one.theta.grad.masked_fill_(one.held, 0.0)
                weights[name].grad = None

        def after() -> None:
            with torch.no_grad():
                for name, one in latents.items():
                    weights[name].copy_(one.rounded()[1])

        after()
        descent.run(net, penalty=penalty, before=before, after=after)


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
