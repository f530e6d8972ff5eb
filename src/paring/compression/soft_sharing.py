"""Soft weight sharing (Nowlan and Hinton 1992; Ullrich, Meeds, Welling, ICLR 2017): a learned mixture as a prior on weights.

    L(w) + tau * sum_i -log sum_j pi_j N(w_i; mu_j, sigma_j^2)

Component 0 has mean 0 and a fixed share pi_0; means, variances and the other shares are learned with the weights. In the end
every weight takes the mean of its most responsible component, zero for component 0. A Gamma prior on the precisions keeps
variances from collapsing.

Where we differ: the prior is one function of a weight's value, so in every step it is computed on a grid, and its slope looked
up for every weight. Components are per network as in the paper, without its search over hyperparameters and its final merging.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tensors import weights_of
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms

GRID = 2048
"""Points between the smallest and the largest weight."""


class Mixture:
    """A mixture of normal distributions, the first of mean zero and fixed share.

    Attributes:
        means: (j - 1,) of all but the first.
        log_variances: (j,).
        logits: (j - 1,) of the shares of all but the first.
    """

    def __init__(self, weights: Tensor, components: int, zero: float) -> None:
        spread = float(weights.std())
        edge = float(weights.abs().quantile(0.995)) if len(weights) < 1 << 24 else 3 * spread
        self.zero = zero
        self.means = torch.linspace(-edge, edge, components - 1, device=weights.device).requires_grad_()
        width = 2 * math.log(max(2 * edge / max(1, components - 2), 1e-6))  # as far as from one mean to the next
        self.log_variances = torch.full((components,), width, device=weights.device).requires_grad_()
        self.logits = torch.zeros(components - 1, device=weights.device).requires_grad_()

    def log_joint(self, value: Tensor) -> Tensor:
        """Log pi_j N(value; mu_j, sigma_j^2): (n, j).

        Args:
            value: (n,).
        """
        shares = torch.cat(
            [self.logits.new_tensor([math.log(self.zero)]), math.log(1 - self.zero) + self.logits.log_softmax(0)]
        )
        means = torch.cat([self.means.new_zeros(1), self.means])
        apart = (value[:, None] - means).square() / self.log_variances.exp()
        return shares - 0.5 * (apart + self.log_variances + math.log(2 * math.pi))

    def hyperprior(self, zero: tuple[float, float], others: tuple[float, float]) -> Tensor:
        """-log of the Gamma priors (shape, rate) on the precisions, up to a constant."""
        precision, log_precision = (-self.log_variances).exp(), -self.log_variances
        shape = torch.tensor([zero[0], *[others[0]] * len(self.means)], device=precision.device)
        rate = torch.tensor([zero[1], *[others[1]] * len(self.means)], device=precision.device)
        return -((shape - 1) * log_precision - rate * precision).sum()

    @torch.no_grad()
    def nearest(self, weight: Tensor) -> Tensor:
        """Every weight's most responsible mean, as float16 holds it."""
        means = torch.cat([self.means.new_zeros(1), self.means]).half().to(weight.dtype)
        found = [means[self.log_joint(part).argmax(1)] for part in weight.detach().flatten().split(1 << 18)]
        return torch.cat(found).view(weight.shape)


@dataclass(frozen=True)
class SoftSharing(Compressor):
    """Soft weight sharing.

    Args:
        components: of the mixture, the one at zero included.
        zero: share of the component at zero, in (0, 1).
        rates: tau, one training after the other; the lowest first, until the bound breaks.
        epochs: of the training at each tau.
        lr: learning rate of the weights, half the training's by default.

    Raises:
        ValueError: a number out of its range.
    """

    components: int = 17
    zero: float = 0.99
    rates: tuple[float, ...] = (1e-7, 3e-7, 1e-6)
    epochs: float = 10.0
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.components < 2 or not 0 < self.zero < 1 or not self.rates or min(self.rates) <= 0:
            raise ValueError(
                f"SoftSharing(components={self.components}, zero={self.zero}, rates={self.rates}): at least two components, a "
                "share in (0, 1), positive rates"
            )
        if not self.epochs > 0:
            raise ValueError(f"SoftSharing(epochs={self.epochs}): has to be positive")

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        net = working_copy(task.net)
        weights = weights_of(net)
        if not weights:
            raise ValueError(
                f"this {type(net).__name__} has no weight of two or more dimensions that is not binary already"
            )
        whole = torch.cat([w.detach().flatten() for w in weights.values()])
        mixture = Mixture(whole, self.components, self.zero)
        rate = task.training.lr / 2 if self.lr is None else self.lr
        for number, tau in enumerate(sorted(self.rates)):
            groups = [
                {"params": [p for p in net.parameters() if p.requires_grad], "lr": rate},
                {"params": [mixture.means], "lr": rate / 5},
                {"params": [mixture.log_variances, mixture.logits], "lr": 3e-3},
            ]

            descent = Descent(task.training, groups, self.epochs, first=round(number * self.epochs))
            self._learn(net, list(weights.values()), mixture, descent, tau)
            estimate_norms(net, task.training)
            twin = working_copy(net)
            with torch.no_grad():
                for weight in weights_of(twin).values():
                    weight.copy_(mixture.nearest(weight))
            estimate_norms(twin, task.training)
            if not task.offer(twin, rate=tau, components=self.components).within:
                return

    def _learn(
        self, net: nn.Module, weights: list[nn.Parameter], mixture: Mixture, descent: Descent, tau: float
    ) -> None:
        slopes: list[Tensor] = []

        def penalty() -> Tensor:
            complexity, slopes[:] = looked_up(weights, mixture)
            return tau * (complexity + mixture.hyperprior((5e3, 2), (2.5e2, 0.1)))

        def before() -> None:
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = tau * slope if weight.grad is None else weight.grad.add_(slope, alpha=tau)

        descent.run(net, penalty=penalty, before=before)


def looked_up(weights: Sequence[Tensor], mixture: Mixture) -> tuple[Tensor, list[Tensor]]:
    """-log p of all weights, as a function of the mixture alone, and its slope with respect to each weight.

    Args:
        weights: tensors; of each the slopes are returned in its shape.
        mixture: the prior.
    """
    with torch.no_grad():
        low = torch.stack([w.min() for w in weights]).min()
        spacing = ((torch.stack([w.max() for w in weights]).max() - low) / (GRID - 1)).clamp_min(1e-12)
        places = [(w - low).div_(spacing).round_().int().clamp_(0, GRID - 1).flatten() for w in weights]
        counts = torch.stack([torch.bincount(place, minlength=GRID) for place in places]).sum(0)
        points = low + spacing * torch.arange(GRID, device=low.device)
    price = -mixture.log_joint(points).logsumexp(1)
    slope = torch.gradient(price.detach())[0] / spacing
    found = [slope.index_select(0, place).view(w.shape) for place, w in zip(places, weights, strict=True)]
    return torch.dot(counts.to(price.dtype), price), found
