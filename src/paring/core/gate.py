"""The gate: a small module in the network that multiplies a weight or a unit and owns all state of that decision.

A gate answers four questions: what the network sees (`forward`), how likely it is open (`chance`, differentiable,
used while training), whether it would be open if training stopped now (`support`, used when reporting), and whether
it can never open again (`settled`, the only thing that shrinking during training looks at).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Gate(nn.Module, ABC):
    """Multiplier for the units, inputs or weights of one layer.

    Attributes:
        lr_scale: learning rate of the gate's parameters as a multiple of the weights' learning rate.
        decay: whether weight decay applies to the gate's parameters (almost never).
    """

    lr_scale: float = 1.0
    decay: bool = False

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of what the gate multiplies: (units,), (inputs,) or the weight's shape."""

    @abstractmethod
    def forward(self, batch: int | None = None) -> Tensor:
        """The multiplier the network sees now.

        Args:
            batch: number of examples, for gates that draw one sample per example; ignored by the others.

        Returns:
            A tensor of `shape`, or of `(batch, *shape)` when the gate samples per example and is in training mode.
        """

    @abstractmethod
    def chance(self) -> Tensor:
        """Differentiable probability that the gate is open, of `shape`, in [0, 1]."""

    @abstractmethod
    def value(self) -> Tensor:
        """The multiplier used at test time, of `shape`; exactly zero where the gate is closed."""

    def support(self) -> Tensor:
        """Boolean tensor of `shape`: open if training stopped now."""
        return self.value() != 0

    def settled(self) -> Tensor:
        """Boolean tensor of `shape`: closed and never able to open again. Nothing is settled by default."""
        return torch.zeros(self.shape, dtype=torch.bool, device=next(self.parameters()).device)

    def constrain(self) -> None:
        """Bring the parameters back into their allowed range after an optimizer step. Nothing by default."""

    @property
    def per_example(self) -> bool:
        """Whether training draws one sample per example instead of one per minibatch."""
        return False
