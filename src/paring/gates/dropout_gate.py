"""Concrete dropout's noise: a soft Bernoulli drop whose probability is learned, one per layer.

    dropped = sigma((logit p + logit u) / t),   u uniform,   multiplier = (1 - dropped) / (1 - p)

Gal, Hron, Kendall, NeurIPS 2017, arXiv 1705.07832. One sample per example and feature (or channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paring.core import Gate, noise_dtype

_LEAST = 1e-7


class DropoutGate(Gate):
    """One drop probability for all inputs of a layer. Nothing is ever closed: at test time the multiplier is one.

    Attributes:
        logit: log p / (1 - p), a scalar.

    Args:
        inputs: how many inputs the layer has.
        p: initial drop probability, in (0, 1).
        temperature: t; smaller is closer to plain dropout, with a noisier gradient.
        lr_scale: learning rate as a multiple of the weights'.
    """

    def __init__(
        self,
        inputs: int,
        *,
        p: float = 0.1,
        temperature: float = 0.1,
        lr_scale: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.temperature = temperature
        self._inputs = inputs
        self.logit = nn.Parameter(torch.tensor(math.log(p / (1 - p)), device=device, dtype=dtype))

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self._inputs])

    @property
    def per_example(self) -> bool:
        return True

    @property
    def p(self) -> Tensor:
        """The drop probability."""
        return torch.sigmoid(self.logit)

    def forward(self, batch: int | None = None) -> Tensor:
        if not self.training:
            return self.value()
        shape = self.dense_shape if batch is None else (batch, *self.dense_shape)
        logit = self.logit.to(noise_dtype(self.logit.dtype))
        u = torch.rand(shape, device=logit.device, dtype=logit.dtype).clamp(_LEAST, 1 - _LEAST)
        kept = torch.sigmoid(-(logit + self.part(u).logit()) / self.temperature)
        return (kept * (1 + logit.exp())).to(self.logit.dtype)  # 1 / (1 - p)

    def prob_open(self) -> Tensor:
        """Ones: a soft drop is never exactly zero."""
        return self.value()

    def value(self) -> Tensor:
        return self.logit.detach().new_ones(self._inputs)

    def entropy(self) -> Tensor:
        """Of one drop: -p ln p - (1 - p) ln(1 - p)."""
        return -(self.p * nn.functional.logsigmoid(self.logit) + (1 - self.p) * nn.functional.logsigmoid(-self.logit))

    def note_cut(self, before: torch.Size, kept: Mapping[int, Tensor]) -> None:
        super().note_cut(before, kept)
        self._inputs = len(kept[0]) if 0 in kept else self._inputs

    def extra_repr(self) -> str:
        return f"{self._inputs}, p={self.p.item():.4g}"
