"""The binary concrete (Gumbel-sigmoid) gate, without hard ends.

    z = sigmoid((log u - log(1 - u) + log_alpha) / beta)

Maddison, Mnih, Teh, "The concrete distribution", ICLR 2017, arXiv 1611.00712; Jang, Gu, Poole, ICLR 2017,
arXiv 1611.01144. Such a gate is never exactly zero, so "P(z != 0)" is 1 for every parameter and says nothing; arXiv
1712.01312 stretches and clips it for that reason. It is here as the baseline that shows why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from paring.gates.relax import logistic
from paring.gates.relax.relaxation import Relaxation, check_clamp, check_positive, logit


@final
@dataclass(frozen=True)
class Concrete(Relaxation):
    """Binary concrete gate z in (0, 1) of temperature beta.

    `prob_open` is a proxy: P(z > threshold) = sigmoid(log_alpha - beta logit(threshold)), not P(z != 0), which is 1.
    `estimate` is the median sigmoid(log_alpha / beta), set to zero unless above the threshold, hence nonzero iff the
    proxy is above 1/2. `sample` never thresholds. `logits(keep)` is where the proxy equals keep.
    Raises ValueError unless beta > 0 and 0 < threshold < 1.
    """

    beta: float = 2 / 3
    threshold: float = 0.5
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_positive(self, "beta", self.beta)
        check_clamp(self)
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"Concrete: threshold={self.threshold}, but the gate only takes values strictly between 0 and 1, so "
                "the value below which it counts as closed must lie there too (0.5 is usual)."
            )

    def _prob_open(self, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid(log_alpha - self.beta * logit(self.threshold))

    def _estimate(self, log_alpha: Tensor) -> Tensor:
        median = torch.sigmoid(log_alpha / self.beta)
        return torch.where(median > self.threshold, median, 0.0)

    def _mean(self, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_mean(log_alpha, self.beta, 0.0, 1.0)

    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_cdf(x, log_alpha, self.beta, 0.0, 1.0)

    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor:
        return logistic.stretched_quantile(p, log_alpha, self.beta, 0.0, 1.0)

    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor:
        return logistic.kl(log_alpha, prior)

    def _logits(self, keep: float) -> float:
        return logit(keep) + self.beta * logit(self.threshold)
