"""`nn.MultiheadAttention` with gates on its weights, and on the rows of its projections.

It uses its projections without calling a layer. Unit gates multiply rows of `in_proj_weight`, or of three weights, and entries
of `in_proj_bias` (queries, keys, values, one after the other), so one sample per example is not possible here. Gates at "weights" sit on each
weight that is there (`packed_projections`), that of its `out_proj` too: the fast path reads it without a call. The gate of a
branch multiplies `out_proj`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from paring.core.packed import GatedPacked


class GatedMultiheadAttention(GatedPacked, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with unit gates on its projections, and gates on all its weights."""

    def shown(self) -> dict[str, Any]:
        found = super().shown()
        if self.block_gate is not None and not self.block_gate.transparent:
            z, out = self.block_gate().to(self.out_proj.weight.dtype), self.out_proj
            found["out_proj.weight"] = found.get("out_proj.weight", out.weight) * z
            if out.bias is not None:
                found["out_proj.bias"] = out.bias * z
        if self.unit_gate is None or self.unit_gate.transparent:
            return found
        for leaf, factor in projection_factors(self, self.unit_gate()).items():
            held = found[leaf] if leaf in found else cast(Tensor, getattr(self, leaf))
            found[leaf] = held * factor.to(held.dtype)
        return found


def projection_rows(module: nn.Module) -> int:
    """Rows of the projections of queries, keys and values."""
    return 3 * int(cast(nn.MultiheadAttention, module).embed_dim)


def projection_factors(module: nn.Module, value: Tensor, *, candidates: bool = True) -> dict[str, Tensor]:
    """What a factor of each of these rows multiplies: of the joint projection, or of three, and of their bias.

    Args:
        module: an attention.
        value: (`projection_rows`,): of queries, keys, values.
        candidates: without a meaning here; all of a row is one number of its result.
    """
    if module.in_proj_weight is not None:
        found = {"in_proj_weight": value.unsqueeze(1)}
    else:
        leaves = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        found = {leaf: part.unsqueeze(1) for leaf, part in zip(leaves, value.chunk(3), strict=True)}
    if module.in_proj_bias is not None:
        found["in_proj_bias"] = value
    return {leaf: factor.to(cast(Tensor, getattr(module, leaf)).dtype) for leaf, factor in found.items()}


def packed_projections(module: nn.Module) -> tuple[str, ...]:
    """The weights of an attention: of the joint projection, or of three, and of its result."""
    leaves = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return (*(leaf for leaf in leaves if isinstance(getattr(module, leaf, None), Tensor)), "out_proj.weight")
