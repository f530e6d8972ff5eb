"""`nn.MultiheadAttention` with gates on its weights, and on the rows of its joint projection.

It uses its projections without calling a layer. Unit gates multiply rows of `in_proj_weight` and entries of `in_proj_bias`
(queries, keys, values, one after the other), so one sample per example is not possible here. Gates at "weights" sit on each
weight that is there (`packed_projections`), that of its `out_proj` too: the fast path reads it without a call. The gate of a
branch multiplies `out_proj`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paring.core.packed import GatedPacked


class GatedMultiheadAttention(GatedPacked, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with unit gates on its joint projection, and gates on all its weights."""

    def shown(self) -> dict[str, Any]:
        found = super().shown()
        if self.block_gate is not None and not self.block_gate.transparent:
            z, out = self.block_gate().to(self.out_proj.weight.dtype), self.out_proj
            found["out_proj.weight"] = found.get("out_proj.weight", out.weight) * z
            if out.bias is not None:
                found["out_proj.bias"] = out.bias * z
        if self.unit_gate is None or self.unit_gate.transparent:
            return found
        z = self.unit_gate().to(self.in_proj_weight.dtype)
        found["in_proj_weight"] = found.get("in_proj_weight", self.in_proj_weight) * z.unsqueeze(1)
        if self.in_proj_bias is not None:
            found["in_proj_bias"] = self.in_proj_bias * z
        return found


def joint_projection(module: nn.Module) -> bool:
    """Whether the module is an attention that projects queries, keys and values with one weight, and nothing besides."""
    return isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None and module.bias_k is None


def packed_projections(module: nn.Module) -> tuple[str, ...]:
    """The weights of an attention: of the joint projection, or of three, and of its result."""
    leaves = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return (*(leaf for leaf in leaves if isinstance(getattr(module, leaf, None), Tensor)), "out_proj.weight")
