"""A soft threshold on the weights of a layer: sign(w) relu(|w| - g(s)), g the logistic function, one s per layer.

Kusupati et al., ICML 2020, arXiv 2002.03231. What is below the threshold is exactly zero, in training too, and
gets no gradient; it comes back when the threshold sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.gates.reader import ReadingGate


class SoftThresholdGate(ReadingGate):
    """One threshold for all weights of a layer.

    Attributes:
        s: the threshold's parameter, a scalar; weight decay applies to it.

    Args:
        weight: the layer's weight.
        s: initial value of the parameter.
        lr_scale: learning rate as a multiple of the weights'.
    """

    decay = True

    def __init__(self, weight: Tensor, *, s: float, lr_scale: float = 1.0) -> None:
        super().__init__(weight)
        self.lr_scale = lr_scale
        self.s = nn.Parameter(torch.tensor(float(s), device=weight.device, dtype=weight.dtype))

    @property
    def threshold(self) -> Tensor:
        """g(s)."""
        return torch.sigmoid(self.s)

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def see(self, weight: Tensor) -> Tensor:
        return weight.sign() * torch.relu(weight.abs() - self.threshold.to(weight.dtype))

    def fold(self, weight: Tensor) -> Tensor:
        return self.see(weight)

    def value(self) -> Tensor:
        size = self.weight.abs()
        return torch.relu(size - self.threshold) / torch.where(size > 0, size, 1.0)

    def kept(self, weight: Tensor) -> Tensor:
        return weight.detach().abs() > self.threshold.detach()

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, s={self.s.item():.4g}"
