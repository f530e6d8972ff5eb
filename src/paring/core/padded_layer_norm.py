"""A LayerNorm that lost features which were always zero: y as if they were still there.

They count in the mean and in the variance, so a LayerNorm of the features that are left is another function. Subtracting from
everything that writes into a residual stream its mean over the features would make it an RMSNorm (Ashkboos et al. 2024,
SliceGPT, arXiv:2401.15024, section 3), but only where no norm writes into the stream itself, as BERT's do, and where what was
zero is still zero then. This needs neither: with d features of which n are given, mean = Σ x / d and
variance = (Σ (x - mean)² + (d - n) mean²) / d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PaddedLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension, of which `padded_to` - n further features are zero and not given.

    Shapes: input (..., n), output (..., n). Computed in float32 at least, as `nn.LayerNorm` does.
    """

    padded_to: int

    def __init__(self, features: int, padded_to: int, eps: float = 1e-5, bias: bool = True) -> None:
        """Raises `ValueError` for `padded_to` < `features`."""
        if padded_to < features:
            raise ValueError(f"padded_to is {padded_to}, less than the {features} features that are given")
        super().__init__(features, eps=eps, bias=bias)
        self.padded_to = padded_to

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        d, (n,) = self.padded_to, self.normalized_shape
        mean = x.sum(-1, keepdim=True) / d
        apart = x - mean
        variance = (apart.square().sum(-1, keepdim=True) + (d - n) * mean.square()) / d
        y = apart * torch.rsqrt(variance + self.eps) * self.weight
        return (y if self.bias is None else y + self.bias).to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, padded_to={self.padded_to}"


def pad(norm: nn.LayerNorm, padded_to: int) -> None:
    """Make a LayerNorm, in place, one of so many features of which some are not given."""
    norm.__class__ = PaddedLayerNorm
    norm.padded_to = padded_to  # type: ignore[assignment]
