"""`nn.MultiheadAttention` with gates on the rows of its joint projection, which it uses without calling a layer.

The gates multiply rows of `in_proj_weight` and entries of `in_proj_bias` (queries, keys, values, one after the other), so
one sample per example is not possible here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paring.core.layers import Gated


class GatedMultiheadAttention(Gated, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with unit gates on its joint projection."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        assert self.unit_gate is not None
        if self.unit_gate.transparent:
            return nn.MultiheadAttention.forward(self, *args, **kwargs)
        z = self.unit_gate().to(self.in_proj_weight.dtype)
        shown = {"in_proj_weight": self.in_proj_weight * z.unsqueeze(1)}
        if self.in_proj_bias is not None:
            shown["in_proj_bias"] = self.in_proj_bias * z
        self.__dict__.update(shown)  # seen before the parameters of the same names
        try:
            return nn.MultiheadAttention.forward(self, *args, **kwargs)
        finally:
            for name in shown:
                del self.__dict__[name]


def joint_projection(module: nn.Module) -> bool:
    """Whether the module is an attention that projects queries, keys and values with one weight, and nothing besides."""
    return isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None and module.bias_k is None
