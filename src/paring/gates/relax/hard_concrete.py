"""The hard concrete gate (Louizos, Welling, Kingma, ICLR 2018, arXiv 1712.01312).

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta)     binary concrete (Maddison et al.; Jang et al., 2017)
    x = s (zeta - gamma) + gamma                             stretched beyond [0, 1], so that clipping has mass
    z = min(1, max(0, x))                                    exactly 0 or 1 with positive probability

    P(z != 0) = sigmoid(log_alpha - beta log(-gamma / zeta))
    test      = min(1, max(0, sigmoid(log_alpha) (zeta - gamma) + gamma))

The paper's test value leaves beta out, so it is neither the mean nor the median of z; test="median" puts beta back, as
later re-implementations do, and then the test gate is open iff P(z != 0) > 1/2. With test="paper" and the defaults a
gate tests closed at log_alpha <= -2.398, where P(z != 0) still is up to 0.31: report both numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from paring.gates.relax import logistic
from paring.gates.relax.relaxation import Relaxation, check_clamp, check_positive, logit


@final
@dataclass(frozen=True)
class HardConcrete(Relaxation):
    """Stretched and clipped binary concrete gate, the gate of L0 regularisation.

    beta: temperature, > 0. gamma < 0 and zeta > 1: ends of the stretched variable. The defaults are the paper's.
    test: "paper" (sigmoid(log_alpha), no temperature) or "median" (sigmoid(log_alpha / beta)).
    clamp: the authors' code keeps log_alpha in (ln 1e-2, ln 1e2), which the paper does not mention; with it P(z != 0)
    stays within (0.047, 0.998).
    `logits(keep)` is logit(keep), as the authors do, at which P(z != 0) is larger than keep.
    Raises ValueError where these numbers do not make a gate.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    test: Literal["paper", "median"] = "paper"
    clamp: tuple[float, float] | None = (math.log(1e-2), math.log(1e2))

    def __post_init__(self) -> None:
        check_positive(self, "beta", self.beta)
        check_clamp(self)
        if not -math.inf < self.gamma < 0 < 1 < self.zeta < math.inf:
            raise ValueError(
                f"HardConcrete: gamma={self.gamma}, zeta={self.zeta}, but the stretched interval must reach beyond "
                "[0, 1] on both sides (gamma < 0 < 1 < zeta, finite), or the gate is never exactly 0 or never 1. "
                "The paper uses gamma=-0.1, zeta=1.1; for a gate without hard ends use Concrete."
            )
        if self.test not in ("paper", "median"):
            raise ValueError(f"HardConcrete: test={self.test!r} is unknown; use 'paper' or 'median'.")

    def _prob_open(self, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid(log_alpha - self._ends()[0])

    def _estimate(self, log_alpha: Tensor) -> Tensor:
        s = torch.sigmoid(log_alpha if self.test == "paper" else log_alpha / self.beta)
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def _mean(self, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_mean(log_alpha, self.beta, self.gamma, self.zeta)

    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_cdf(x, log_alpha, self.beta, self.gamma, self.zeta)

    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_quantile(p, log_alpha, self.beta, self.gamma, self.zeta)

    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor:
        return logistic.censored_kl(log_alpha, prior, *self._ends())

    def _logits(self, keep: float) -> float:
        return logit(keep)

    def _ends(self) -> tuple[float, float]:
        """Values of logit(u) + log_alpha at which the stretched variable is 0 and 1."""
        return self.beta * math.log(-self.gamma / self.zeta), self.beta * math.log((1 - self.gamma) / (self.zeta - 1))
