"""A Linear that reads only some columns of its input: y = x[..., reads] Wᵀ + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelectLinear(nn.Linear):
    """`nn.Linear` over the input columns `reads` (int64 buffer, (in_features,)); the other columns are not used.

    Shapes: input (..., n) with n > max(reads), output (..., out_features).
    """

    reads: Tensor

    def __init__(self, reads: Tensor, out_features: int, bias: bool = True) -> None:
        super().__init__(len(reads), out_features, bias)
        self.register_buffer("reads", reads.to(torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.index_select(-1, self.reads), self.weight, self.bias)
