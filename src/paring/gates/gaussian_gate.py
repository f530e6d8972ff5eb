"""Gaussian noise on weights whose size is learned: w ~ N(theta, sigma^2), and no weight where noise drowns it.

    log alpha = log sigma^2 - log theta^2, limited to +-8
    KL(q || log-uniform prior) ~ k1 sigma(-k2 - k3 log alpha) + log(1 + 1/alpha) / 2

Molchanov, Ashukha, Vetrov, ICML 2017, arXiv 1701.05369: log sigma^2 is the parameter (additive noise), and outputs are
drawn instead of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.gates.reader import ReadingGate

K1, K2, K3 = 0.63576, 1.87320, 1.48695
_LIMIT = 8.0
_LEAST = 1e-8  # keeps log theta^2 finite


class GaussianGate(ReadingGate):
    """One log sigma^2 per weight.

    Attributes:
        log_sigma2: the parameter.
        threshold: a weight stays while its log alpha is at most this.

    Args:
        weight: the layer's weight.
        log_sigma2: initial value.
        threshold: see above.
        lr_scale: learning rate as a multiple of the weights'.
    """

    def __init__(
        self, weight: Tensor, *, log_sigma2: float = -10.0, threshold: float = 3.0, lr_scale: float = 1.0
    ) -> None:
        super().__init__(weight)
        self.lr_scale = lr_scale
        self.threshold = threshold
        self.log_sigma2 = nn.Parameter(torch.full_like(weight.detach(), log_sigma2))

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log(sigma^2 / w^2) in [-8, 8]."""
        return (self.log_sigma2 - (weight.pow(2) + _LEAST).log()).clamp(-_LIMIT, _LIMIT)

    def kept(self, weight: Tensor) -> Tensor:
        return self.log_alpha(weight).detach() <= self.threshold

    def divergence(self, weight: Tensor) -> Tensor:
        """KL of every weight's distribution from the prior, up to a constant; it falls to 0 as alpha grows."""
        log_alpha = self.log_alpha(weight)
        return K1 * torch.sigmoid(-K2 - K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)

    def forward(self, batch: int | None = None) -> Tensor:
        return torch.ones_like(self.weight) if self.training else self.value()

    def value(self) -> Tensor:
        return self.prob_open()

    def see(self, weight: Tensor) -> Tensor:
        return weight if self.training else self.fold(weight)

    def fold(self, weight: Tensor) -> Tensor:
        return weight * self.kept(weight)

    @property
    def noisy(self) -> bool:
        return self.training

    def variance(self, weight: Tensor) -> Tensor | None:
        return self.log_sigma2.exp() if self.training else None

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, threshold={self.threshold}"
