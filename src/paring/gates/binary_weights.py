"""Binary weights: the network sees the sign of a latent real weight, times a scale per output channel or none.

    no scale   w̃ = sign(w)                     BNN: Hubara et al., NeurIPS 2016
    mean       w̃ = α sign(w),  α = mean |w|    XNOR-Net: Rastegari et al., ECCV 2016, eq. 6; α per output channel

sign(0) = -1, so no weight is ever zero (but a channel of nothing but zeros has the mean 0). The gradient of the sign is a
rule (`paring.hard.gradient_rules`), by default straight through where |w| <= 1. That of α is exact, G summed over the channel;
XNOR-Net's eq. 11 keeps a part of it only.

When inputs are cut out of the layer while it trains, α goes on counting what they weighed, so the function stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paring.gates.reader import ReadingGate
from paring.hard import GradientRule, SaturatedSTE, sign


class BinaryWeights(ReadingGate):
    """Signs of the weights of a layer whose first dimension is the output channel.

    Attributes:
        total: Σ|w| of each channel when the weight was last read, what was cut out included.
        lost: the part of it that was cut out.

    Args:
        weight: the layer's weight, (outputs, ...).
        mean: multiply the signs by mean |w| of each output channel.
        rule: gradient of the sign.
    """

    total: Tensor
    lost: Tensor

    def __init__(self, weight: Tensor, *, mean: bool = True, rule: GradientRule | None = None) -> None:
        super().__init__(weight)
        self.mean = mean
        self.rule = SaturatedSTE() if rule is None else rule
        self.register_buffer("total", _sums(self.weight))
        self.register_buffer("lost", torch.zeros_like(self.total))

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def see(self, weight: Tensor) -> Tensor:
        signs = sign(weight, self.rule)
        return signs * self._size(weight) if self.mean else signs

    def fold(self, weight: Tensor) -> Tensor:
        return self.see(weight)

    def value(self) -> Tensor:
        """What the weight is multiplied by; zero at weights that are exactly zero, where no multiplier gives the sign."""
        size = self.weight.abs()
        return torch.where(size > 0, self.see(self.weight).abs() / torch.where(size > 0, size, 1.0), 0.0)

    def kept(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight, dtype=torch.bool)

    @torch.no_grad()
    def read(self, weight: Tensor) -> None:
        super().read(weight)
        self.total.copy_(_sums(weight) + self.lost)

    def note_cut(self, before: torch.Size, kept: Mapping[int, Tensor]) -> None:
        super().note_cut(before, kept)
        if 0 in kept:
            self.total = self.total[kept[0].to(self.total.device)]
        self.lost = (self.total - _sums(self.weight)).clamp(min=0.0)

    def _size(self, weight: Tensor) -> Tensor:
        """α, laid out against the weight."""
        each = self.dense_shape[1:].numel()
        mean = (_sums(weight) + self.lost.to(weight.dtype)) / each
        return mean.view(-1, *[1] * (weight.dim() - 1))

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, mean={self.mean}, rule={self.rule}"


def _sums(weight: Tensor) -> Tensor:
    """Σ|w| of each output channel."""
    return weight.abs().flatten(1).sum(1)


def is_binary(weight: Tensor) -> bool:
    """Whether each output channel holds one positive size, with either sign, and nothing else."""
    size = weight.detach().abs().flatten(1)
    return bool(((size == size[:, :1]) & (size > 0)).all())
