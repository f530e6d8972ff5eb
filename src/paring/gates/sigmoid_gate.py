"""A deterministic soft mask: m = sigma(beta s), which becomes a step as the temperature beta grows.

In eval mode, and as soon as the mask is fixed, the gate is that step: open where s > 0, so exactly zero elsewhere
(Savarese, Silva, Maire, NeurIPS 2020, arXiv 1912.04427; H(0) = 0 as in their code).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Gate

_CLOSED = 1e4  # sigma(-this) is zero in every precision; round after round without a bound it would become infinite


class SigmoidGate(Gate):
    """One logit s per element of `shape`.

    Attributes:
        s: the logits.
        beta: temperature, a number in a tensor (state of the network, so that compiled code does not depend on it).
        fixed: the mask is final; s moves no more, and what is closed is permanently closed.

    Args:
        shape: what the gate multiplies.
        s0: initial logit.
        rescale: multiply soft and hard masks by 1 / sigma(s0), so that the network starts with its own weights.
        lr_scale: learning rate as a multiple of the weights'.
    """

    beta: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        s0: float = 0.0,
        rescale: bool = False,
        lr_scale: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self._frozen = False
        self.factor = 1 + math.exp(-s0) if rescale else 1.0
        self.s = nn.Parameter(torch.full(shape, float(s0), device=device, dtype=dtype))
        self.register_buffer("beta", torch.ones((), device=device, dtype=dtype))

    @property
    def shape(self) -> torch.Size:
        return self.s.shape

    def forward(self, batch: int | None = None) -> Tensor:
        if self.training and not self.frozen:
            return self.prob_open() * self.factor
        value = self.value()
        if self.training and torch.is_grad_enabled():
            return value + 0.0 * self.s  # a gradient of zero: what counts on every parameter having one goes on
        return value

    def prob_open(self) -> Tensor:
        """sigma(beta s): how far open the gate is; no probability, as nothing is drawn."""
        return self.support().to(self.s.dtype) if self.frozen else torch.sigmoid(self.beta * self.s)

    def value(self) -> Tensor:
        return self.support().to(self.s.dtype) * self.factor

    def support(self) -> Tensor:
        return self.s.detach() > 0

    def permanently_closed(self) -> Tensor:
        return ~self.support() if self.frozen else super().permanently_closed()

    @torch.no_grad()
    def again(self, s0: float) -> None:
        """Between rounds: s <- min(beta s, s0). What is clearly closed stays so; what is open starts anew at s0.

        No lower than what every precision takes for closed.
        """
        self.s.copy_((self.beta * self.s).clamp(-_CLOSED, s0))

    @torch.no_grad()
    def choose(self, mask: Tensor) -> None:
        """Move s as little as it takes to be open exactly where the boolean `mask` is true."""
        least = torch.finfo(self.s.dtype).tiny
        self.s.copy_(torch.where(mask, self.s.clamp(min=least), self.s.clamp(max=0.0)))

    def freeze(self) -> None:
        """From now on the gate is the mask s > 0."""
        self._frozen = True
        self.rest()

    @property
    def frozen(self) -> bool:
        return self._frozen

    def rest(self) -> None:
        if self.frozen:
            self.s.grad = None

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.frozen)

    def set_extra_state(self, state: Any) -> None:
        self._frozen = bool(state)
        self.rest()

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, beta={float(self.beta):.4g}, frozen={self.frozen}"
