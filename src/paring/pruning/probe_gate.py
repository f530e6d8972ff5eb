"""A gate that shows one and notes how the loss would move with it, for each example by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paring.core import Gate


class ProbeGate(Gate):
    """Ones, whose gradients are the derivatives of the loss by the unit's multiplier.

    In a pass over a batch each example has ones of its own, so that one backward pass gives the gradient of every example.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        apart: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, device=device, dtype=dtype), persistent=False)
        self._apart = apart
        self._shown: dict[int | None, Tensor] = {}

    mask: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.mask.shape

    @property
    def per_example(self) -> bool:
        return self._apart

    def forward(self, batch: int | None = None) -> Tensor:
        if not self.training:
            return self.mask
        key = batch if self._apart else None
        if key not in self._shown:
            shown = self.mask.expand(key, *self.shape) if key is not None else self.mask
            self._shown[key] = shown.clone().requires_grad_()
        return self._shown[key]

    def noted(self) -> list[Tensor]:
        """What was shown since the last `take`, for derivatives."""
        return list(self._shown.values())

    def take(self, examples: int) -> Tensor:
        """Gradients since the last call, (rows, *shape): a row for each example, or one for the batch as a whole."""
        found = self.rows([shown.grad for shown in self._shown.values()], examples)
        self._shown = {}
        return found

    def rows(self, gradients: Sequence[Tensor | None], examples: int) -> Tensor:
        """Gradients by what is `noted`, (rows, *shape): a row for each example, or one for the batch as a whole."""
        rows = [
            grad if key is not None else grad[None]
            for key, grad in zip(self._shown, gradients, strict=True)
            if grad is not None
        ]
        if not rows:
            return self.mask.new_zeros(examples, *self.shape)
        apart = [part for part in rows if len(part) % examples == 0]  # examples, or several tokens or windows of each
        alike = [part.sum(0) for part in rows if len(part) % examples]
        if not apart:
            return torch.stack(alike).sum(0)[None]
        found = torch.stack([part.view(examples, -1, *self.shape).sum(1) for part in apart]).sum(0)
        return (
            found + torch.stack(alike).sum(0) / examples if alike else found
        )  # what all share, as a table of positions

    def prob_open(self) -> Tensor:
        return self.mask

    def value(self) -> Tensor:
        return self.mask
