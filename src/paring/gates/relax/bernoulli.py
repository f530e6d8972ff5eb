"""The hard Bernoulli gate with a straight-through gradient.

    z = 1 if u > 1 - sigmoid(log_alpha) else 0,      dz / dlog_alpha := sigmoid'(log_alpha)

Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons", 2013, arXiv 1308.3432. The
sample is exactly binary, and the gradient is that of its mean: biased for a nonlinear loss, exact for a linear one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from paring.gates.relax.relaxation import Relaxation, check_clamp, logit


@final
@dataclass(frozen=True)
class StraightThroughBernoulli(Relaxation):
    """z in {0, 1} with P(z = 1) = sigmoid(log_alpha) and the straight-through gradient.

    `cdf` and `quantile` are those of the binary variable itself, so they are steps. `estimate` is the more likely value
    (0 on a tie). `logits(keep)` is where P(z != 0) equals keep.
    """

    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_clamp(self)

    def _sample(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        p = torch.sigmoid(log_alpha)
        return self._quantile(u, log_alpha) + (p - p.detach())

    def _prob_open(self, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid(log_alpha)

    def _estimate(self, log_alpha: Tensor) -> Tensor:
        return (log_alpha > 0).to(log_alpha.dtype)

    def _mean(self, log_alpha: Tensor) -> Tensor:
        return torch.sigmoid(log_alpha)

    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor:
        return torch.where(x < 0, 0.0, torch.where(x < 1, torch.sigmoid(-log_alpha), 1.0))

    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor:
        return (p > torch.sigmoid(-log_alpha)).to(log_alpha.dtype)

    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor:
        q1, q0 = logsigmoid(log_alpha), logsigmoid(-log_alpha)
        return q1.exp() * (q1 - logsigmoid(prior)) + q0.exp() * (q0 - logsigmoid(-prior))

    def _logits(self, keep: float) -> float:
        return logit(keep)
