"""A gate drawn from a relaxed binary distribution (hard concrete and its relatives), one parameter per gate.

While training, `forward` draws one sample per minibatch (or per example) from the relaxation; in eval mode it is the
relaxation's test-time estimate. A gate can be *held*: from then on it shows its estimate in training too, and its
parameters stop moving, so that the weights can settle on the network that will be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Gate
from paring.relax import Relaxation


class StochasticGate(Gate):
    """One stochastic gate per element of `shape`.

    Args:
        relaxation: the distribution; its `clamp` is applied after every optimizer step.
        shape: what the gate multiplies.
        keep: probability in (0, 1) from which the initial log-alpha follows.
        spread: standard deviation of the initial log-alpha (0.01 in the L0 paper's code).
        per_example: draw one sample per example instead of one per minibatch.
        lr_scale: learning rate as a multiple of the weights'.

    Raises:
        ValueError: `keep` is not in (0, 1), or `spread` is negative.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        shape: tuple[int, ...],
        *,
        keep: float = 0.5,
        spread: float = 0.01,
        per_example: bool = False,
        lr_scale: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if spread < 0:
            raise ValueError(f"StochasticGate(spread={spread}): must not be negative")
        self.relaxation = relaxation
        self.lr_scale = lr_scale
        self.held = False
        self._per_example = per_example
        start = torch.randn(shape, device=device, dtype=dtype) * spread + relaxation.logits(keep)
        self.log_alpha = nn.Parameter(start)

    @property
    def shape(self) -> torch.Size:
        return self.log_alpha.shape

    @property
    def per_example(self) -> bool:
        return self._per_example and not self.held

    def forward(self, batch: int | None = None) -> Tensor:
        if not self.training or self.held:
            return self.relaxation.estimate(self.log_alpha)
        shape = (batch, *self.shape) if self._per_example and batch is not None else self.shape
        u = torch.rand(shape, device=self.log_alpha.device, dtype=self.log_alpha.dtype)
        return self.relaxation.sample(self.log_alpha, u)

    def chance(self) -> Tensor:
        return self.support().to(self.log_alpha.dtype) if self.held else self.relaxation.chance(self.log_alpha)

    def value(self) -> Tensor:
        return self.relaxation.estimate(self.log_alpha)

    def settled(self) -> Tensor:
        return ~self.support() if self.held else super().settled()

    def hold(self) -> None:
        """Stop sampling and stop moving: the gate keeps its present test-time value for good."""
        self._set_held(True)

    def _set_held(self, held: bool) -> None:
        self.held = held
        self.log_alpha.requires_grad_(not held)
        self.log_alpha.grad = None

    @torch.no_grad()
    def constrain(self) -> None:
        if self.relaxation.clamp is not None and not self.held:
            self.log_alpha.clamp_(*self.relaxation.clamp)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.held)

    def set_extra_state(self, state: Any) -> None:
        if bool(state) != self.held:
            self._set_held(bool(state))

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.relaxation}, held={self.held}"
