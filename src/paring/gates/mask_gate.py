"""A gate that is a plain mask: zeros and ones that a method sets, nothing that is trained.

`dense` lets the gradient of closed weights through (straight-through), for methods that grow weights by their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paring.core import Gate


class MaskGate(Gate):
    """One bit per element of `shape`.

    Attributes:
        mask: boolean tensor of `shape`; what is False is exactly zero for the network.
        dense: give closed weights the gradient they would have if they were open.
        factor: what multiplies the weights that are open.
        input_group: an N:M pattern in groups of so many inputs; 1 for none. Removal then keeps or takes whole groups.
        fixed: closed for good; only then does a closed element count as settled.
        aside: of the weight's shape, the values that closed weights had, zero for open ones; None keeps none.
        fresh: what an exchange has just opened; None at any other time.

    Args:
        shape: what the gate multiplies.
    """

    mask: Tensor
    aside: Tensor | None

    def __init__(self, shape: tuple[int, ...], *, device: torch.device | None = None) -> None:
        super().__init__()
        self.dense = False
        self.fixed = False
        self.factor = 1.0
        self.input_group = 1
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.register_buffer("aside", None)
        self.fresh: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.mask.shape

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def chance(self) -> Tensor:
        return self.mask.to(torch.get_default_dtype())

    def value(self) -> Tensor:
        return self.chance() * self.factor

    def support(self) -> Tensor:
        return self.mask.clone()

    def settled(self) -> Tensor:
        return ~self.mask if self.fixed else super().settled()

    def see(self, weight: Tensor) -> Tensor:
        seen = weight * self.mask if self.factor == 1 else weight * (self.mask.to(weight.dtype) * self.factor)
        return weight + (seen - weight).detach() if self.dense and torch.is_grad_enabled() else seen

    def latent(self, weight: Tensor) -> Tensor:
        """The weight with the values that were put aside where it is closed."""
        return weight if self.aside is None else torch.where(self.mask, weight, self.aside)

    def fold(self, weight: Tensor) -> Tensor:
        return weight * self.mask * self.factor

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.dense, self.fixed])

    def set_extra_state(self, state: Any) -> None:
        self.dense, self.fixed = (bool(flag) for flag in state)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, dense={self.dense}, fixed={self.fixed}"
