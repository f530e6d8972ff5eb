"""The `Conv1D` of the transformers library (a linear layer with the transposed weight, in GPT-2) with unit gates.

Only imported when a network contains such a layer.
"""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from paring.core.layers import GATED, STOCK, Gated


class GatedConv1D(Gated, Conv1D):
    """`transformers.pytorch_utils.Conv1D` with gates on its output features."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply_units(Conv1D.forward(self, x))  # type: ignore[no-untyped-call]


GATED[Conv1D] = GatedConv1D
STOCK[GatedConv1D] = Conv1D
