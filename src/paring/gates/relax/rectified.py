"""Rectified gates: additive noise, then clipping.

    z = min(1, max(0, log_alpha + width * noise))

arXiv 1712.01312 builds its hard concrete gate by the general recipe "take a continuous variable, rectify it"; these
are two other instances. With Gaussian noise this is the stochastic gate of Yamada, Lindenbaum, Negahban, Kluger,
"Feature selection using stochastic gates", ICML 2020, arXiv 1810.04247 (they use sigma = 0.5). Here log_alpha is a
location on the scale of z, not a logit: 0 is "closed half of the time" and 1 is "fully open half of the time". Both
noises are symmetric, so the test value, the clipped location, is the median of z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from paring.gates.relax import logistic
from paring.gates.relax.relaxation import Relaxation, check_clamp, check_positive, logit


@final
@dataclass(frozen=True)
class RectifiedGaussian(Relaxation):
    """z = clip(log_alpha + sigma * eps, 0, 1) with eps standard normal; P(z != 0) = Phi(log_alpha / sigma).

    `logits(keep)` is where P(z != 0) equals keep. Raises ValueError unless sigma > 0.
    """

    sigma: float = 0.5
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_positive(self, "sigma", self.sigma)
        check_clamp(self)

    def _prob_open(self, log_alpha: Tensor) -> Tensor:
        return _normal_cdf(log_alpha / self.sigma)

    def _estimate(self, log_alpha: Tensor) -> Tensor:
        return log_alpha.clamp(0, 1)

    def _mean(self, log_alpha: Tensor) -> Tensor:
        """Sigma [G(m) - G(n)] with m = log_alpha / sigma, n = (log_alpha - 1) / sigma, G(t) = t Phi(t) + phi(t)."""
        m, n = log_alpha / self.sigma, (log_alpha - 1) / self.sigma
        return self.sigma * (m * _normal_cdf(m) + _normal_density(m) - n * _normal_cdf(n) - _normal_density(n))

    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor:
        return _normal_cdf((x - log_alpha) / self.sigma)

    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor:
        return log_alpha + self.sigma * _normal_quantile(p)

    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor:
        """Between 0 and 1, ln q - ln p is linear in x, so its integral needs only the mass and mean of q there."""
        low, high = -log_alpha / self.sigma, (1 - log_alpha) / self.sigma
        low_p, high_p = -prior / self.sigma, (1 - prior) / self.sigma
        shift = (log_alpha - prior) / self.sigma
        q_below, q_above = _log_normal_cdf(low), _log_normal_cdf(-high)
        ends = q_below.exp() * (q_below - _log_normal_cdf(low_p)) + q_above.exp() * (q_above - _log_normal_cdf(-high_p))
        mass = torch.where(low > 0, _normal_cdf(-low) - _normal_cdf(-high), _normal_cdf(high) - _normal_cdf(low))
        return ends + shift * (shift / 2 * mass + _normal_density(low) - _normal_density(high))

    def _logits(self, keep: float) -> float:
        return self.sigma * NormalDist().inv_cdf(keep)


@final
@dataclass(frozen=True)
class RectifiedLogistic(Relaxation):
    """z = clip(log_alpha + scale * logit(u), 0, 1); P(z != 0) = sigmoid(log_alpha / scale).

    The default scale gives the noise about the spread of RectifiedGaussian's. `logits(keep)` is where P(z != 0) equals
    keep. Raises ValueError unless scale > 0.
    """

    scale: float = 0.25
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_positive(self, "scale", self.scale)
        check_clamp(self)

    def _prob_open(self, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid(log_alpha / self.scale)

    def _estimate(self, log_alpha: Tensor) -> Tensor:
        return log_alpha.clamp(0, 1)

    def _mean(self, log_alpha: Tensor) -> Tensor:
        """Scale [softplus(log_alpha / scale) - softplus((log_alpha - 1) / scale)]; softplus(t) = -ln sigmoid(-t)."""
        return self.scale * (logsigmoid((1 - log_alpha) / self.scale) - logsigmoid(-log_alpha / self.scale))

    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid((x - log_alpha) / self.scale)

    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor:
        return log_alpha + self.scale * torch.logit(p)

    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor:
        return logistic.censored_kl(log_alpha / self.scale, prior / self.scale, 0.0, 1 / self.scale)

    def _logits(self, keep: float) -> float:
        return self.scale * logit(keep)


def _normal_density(x: Tensor) -> Tensor:
    """Standard normal density."""
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    y: Tensor = torch.special.ndtr(x)
    return y


def _log_normal_cdf(x: Tensor) -> Tensor:
    y: Tensor = torch.special.log_ndtr(x)
    return y


def _normal_quantile(p: Tensor) -> Tensor:
    y: Tensor = torch.special.ndtri(p)
    return y
