"""The `Conv1D` of the transformers library (a linear layer with the transposed weight, in GPT-2) with unit gates.

Only imported when a network contains such a layer.
"""

from __future__ import annotations

from transformers.pytorch_utils import Conv1D

from paring.core.kinds import Kind, register
from paring.core.layers import GatedCall


class GatedConv1D(GatedCall, Conv1D):  # type: ignore[misc]  # the forward takes more than Conv1D's
    """`transformers.pytorch_utils.Conv1D` with gates on its output features."""


register(
    Kind(
        Conv1D,
        "addmm",
        unit_dim=1,
        column_dim=0,
        sizes=("nx", "nf"),
        gated=GatedConv1D,
        places=("units",),
        elsewhere="its weight is transposed, only units are supported",
    )
)
