"""What a relaxation of a binary gate is.

A gate wants to be 0 or 1 with a learnable probability; that has no gradient. A *relaxation* replaces it by a random
variable x(log_alpha, u) that is smooth in its parameter, with u ~ U(0, 1), and mostly by its clipped version
z = min(1, max(0, x)), which still is exactly zero with positive probability (Louizos, Welling, Kingma,
"Learning sparse neural networks through L0 regularization", ICLR 2018, arXiv 1712.01312).

A relaxation is a frozen dataclass of numbers; all its functions are pure and elementwise. The parameter of every gate
is called `log_alpha`, whatever the family does with it. Bigger always means "more open".

Where we differ from the authors' code: the noise is kept 8 machine epsilons of its type away from 0 and 1 (1e-6 in
float32, which is the authors' number; finer in float64), probabilities are never clamped because they are computed from
logits, and float16 / bfloat16 inputs are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Relaxation(ABC):
    """Family of gates z with values in [0, 1].

    In all functions log_alpha is a floating tensor of any shape (TypeError otherwise), the other argument is a number
    or a tensor that broadcasts with it, and the result has the broadcast shape and the type and device of log_alpha.
    Values and gradients in log_alpha stay finite (tested to |log_alpha| = 50 in float32 and 1e4 in float64).
    Subclasses are final and define the underscored versions, which only ever see float32 or float64 tensors.

    `clamp` is the range that the training loop clamps log_alpha to after each step, None for no clamping.
    """

    clamp: tuple[float, float] | None

    def sample(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        """Training value z in [0, 1] of each gate, for uniform noise u in [0, 1] (0 and 1 themselves are safe).

        Differentiable in log_alpha. Draw u in float32 or better: half-precision noise has too few values near 0.
        """
        a, v = _full(log_alpha, u)
        margin = 8 * torch.finfo(a.dtype).eps
        return self._sample(a, v.clamp(margin, 1 - margin)).to(log_alpha.dtype)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """P(z != 0), differentiable in log_alpha; for `Concrete`, which is never zero, see there."""
        (a,) = _full(log_alpha)
        return self._prob_open(a).to(log_alpha.dtype)

    def estimate(self, log_alpha: Tensor) -> Tensor:
        """Deterministic gate used after training, in [0, 1] and exactly 0 where the gate is closed."""
        (a,) = _full(log_alpha)
        return self._estimate(a).to(log_alpha.dtype)

    def mean(self, log_alpha: Tensor) -> Tensor:
        """E[z], differentiable in log_alpha. Some families integrate numerically: for reports, not for inner loops."""
        (a,) = _full(log_alpha)
        return self._mean(a).clamp(0, 1).to(log_alpha.dtype)

    def cdf(self, x: Tensor | float, log_alpha: Tensor) -> Tensor:
        """P(variable <= x) of the variable before clipping; exactly 0 below and 1 above its support."""
        a, v = _full(log_alpha, x)
        return self._cdf(v, a).to(log_alpha.dtype)

    def quantile(self, p: Tensor | float, log_alpha: Tensor) -> Tensor:
        """Smallest value whose cdf reaches p in [0, 1], the inverse of `cdf`; 0 and 1 give the ends of the support."""
        a, v = _full(log_alpha, p)
        return self._quantile(v, a).to(log_alpha.dtype)

    def kl(self, log_alpha: Tensor, prior: Tensor | float) -> Tensor:
        """KL(q(z) || p(z)) in nats of each gate against the same family with parameter `prior` (in logits too).

        Clipped gates are mixtures of two point masses and a density, and this is the KL of the mixture:
        Q(0) ln[Q(0)/P(0)] + (1-Q(1)) ln[(1-Q(1))/(1-P(1))] + integral over (0, 1) of q (ln q - ln p),
        where q and p are the densities before clipping, not renormalised on (0, 1) (arXiv 1712.01312, eq. 28).
        Zero iff the parameters agree; differentiable in both.
        """
        a, b = _full(log_alpha, prior)
        return self._kl(a, b).clamp_min(0).to(log_alpha.dtype)

    def logits(self, keep: float) -> float:
        """Initial log_alpha for a keep probability strictly between 0 and 1; ValueError otherwise."""
        if not 0 < keep < 1:
            raise ValueError(
                f"keep={keep} has no finite logit: it is the probability that a gate starts open and must lie strictly "
                f"between 0 and 1. For gates that start almost open use keep=0.99; a droprate d means keep=1-d."
            )
        return self._logits(keep)

    def _sample(self, log_alpha: Tensor, u: Tensor) -> Tensor:
        return self._quantile(u, log_alpha).clamp(0, 1)

    @abstractmethod
    def _prob_open(self, log_alpha: Tensor) -> Tensor: ...

    @abstractmethod
    def _estimate(self, log_alpha: Tensor) -> Tensor: ...

    @abstractmethod
    def _mean(self, log_alpha: Tensor) -> Tensor: ...

    @abstractmethod
    def _cdf(self, x: Tensor, log_alpha: Tensor) -> Tensor: ...

    @abstractmethod
    def _quantile(self, p: Tensor, log_alpha: Tensor) -> Tensor: ...

    @abstractmethod
    def _kl(self, log_alpha: Tensor, prior: Tensor) -> Tensor: ...

    @abstractmethod
    def _logits(self, keep: float) -> float: ...


def logit(p: float) -> float:
    """ln(p / (1 - p)) of a number strictly between 0 and 1."""
    return math.log(p) - math.log1p(-p)


def check_positive(owner: Relaxation, name: str, value: float) -> None:
    """ValueError unless value is a finite positive number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{type(owner).__name__}: {name}={value}, but {name} is a width and must be finite and > 0.")


def check_clamp(owner: Relaxation) -> None:
    """ValueError unless owner.clamp is None or an increasing pair."""
    pair = owner.clamp
    if pair is not None and not (len(pair) == 2 and pair[0] < pair[1]):
        raise ValueError(
            f"{type(owner).__name__}: clamp={pair} is not a range that log_alpha can be kept in. Give (low, high) with "
            "low < high, or None for no clamping."
        )


def _full(log_alpha: Tensor, *others: Tensor | float) -> list[Tensor]:
    """The arguments as tensors on the device of log_alpha, in its type but at least float32."""
    if not log_alpha.is_floating_point():
        raise TypeError(
            f"log_alpha has type {log_alpha.dtype} and shape {tuple(log_alpha.shape)}, but gates need a gradient. "
            "Pass a floating tensor, for example log_alpha.float()."
        )
    dtype, device = torch.promote_types(log_alpha.dtype, torch.float32), log_alpha.device
    return [log_alpha.to(dtype)] + [
        other.to(device, dtype) if isinstance(other, Tensor) else torch.full((), other, dtype=dtype, device=device)
        for other in others
    ]
