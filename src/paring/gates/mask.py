"""A gate that somebody sets: a mask of zeros and ones, with nothing to learn.

What is masked is exactly zero in every forward pass. Its weight gets no gradient, unless the gate is asked for dense
gradients (`dense=True`): then the backward pass leaves the mask out, so that a method sees what opening would bring
(RigL; Evci et al. 2020, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paring.core import Gate


class MaskGate(Gate):
    """A mask over `shape`, all open at first.

    Attributes:
        mask: boolean buffer.
        dense: pass gradients to what is masked as well.
        fixed: nothing opens again; what is closed is settled.
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.dense = False
        self.fixed = False

    @property
    def shape(self) -> torch.Size:
        return self.mask.shape

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def multiply(self, weight: Tensor) -> Tensor:
        masked = weight * self.mask.to(weight.dtype)
        return weight + (masked - weight).detach() if self.dense and self.training else masked

    def chance(self) -> Tensor:
        return self.mask.to(torch.get_default_dtype())

    def value(self) -> Tensor:
        return self.mask.to(torch.get_default_dtype())

    def support(self) -> Tensor:
        return self.mask

    def settled(self) -> Tensor:
        return ~self.mask if self.fixed else torch.zeros_like(self.mask)

    @torch.no_grad()
    def set(self, mask: Tensor) -> None:
        """Open exactly these.

        Raises:
            ValueError: another shape, or the mask is fixed and this would open something again.
        """
        if mask.shape != self.mask.shape:
            raise ValueError(f"a mask of shape {tuple(mask.shape)} for a gate of shape {tuple(self.mask.shape)}")
        if self.fixed and bool((mask & ~self.mask).any()):
            raise ValueError("this mask is fixed: what is closed cannot open again")
        self.mask.copy_(mask)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.dense, self.fixed])

    def set_extra_state(self, state: Any) -> None:
        self.dense, self.fixed = (bool(value) for value in state)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, open={int(self.mask.sum())}, fixed={self.fixed}"
