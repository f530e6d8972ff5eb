"""What each operation does to labels and values: two tables, from the operation's name to its rule.

A rule may assume nothing about its inputs: when they are not what it understands, it calls the barrier.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import fx

from paring.analysis import ops
from paring.analysis.attention_rules import attention, fixed_attention, softmax
from paring.analysis.contractions import baddbmm, einsum, fixed_product, matmul, product
from paring.analysis.entry_rules import (
    cast,
    chosen,
    copied,
    dropout,
    first_operand,
    fixed_cat,
    fixed_move,
    fixed_pairwise,
    free_cat,
    free_move,
    free_pairwise,
    like,
    masked_fill,
    one_operand,
    pad,
    pointwise,
    pool,
    reduce,
)
from paring.analysis.found import found
from paring.analysis.free_rules import addmm, free_addmm
from paring.analysis.interpreter import Rule
from paring.analysis.layer_rules import conv, conv_transpose, embedding
from paring.analysis.norm_rules import batch_norm, group_norm, instance_norm, layer_norm, prelu, rms_norm
from paring.analysis.parameter_parts import or_parts
from paring.analysis.projection import free_linear, linear
from paring.analysis.recurrent_rules import CELLS, NAMES, cell, recurrent
from paring.analysis.same_parameter import or_same
from paring.analysis.scatter_rules import scatter
from paring.analysis.shuffle_rules import channel_shuffle, glu, pixel_shuffle, rrelu
from paring.analysis.stacked_weights import TURNS, or_stacked, or_weight
from paring.analysis.state import packet


def _rules(names: Iterable[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


LAYERS: dict[str, Rule] = {
    **_rules(("conv1d", "conv2d", "conv3d"), conv),
    **_rules(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    "embedding": embedding,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "prelu": prelu,
    "rrelu": rrelu,
    "glu": glu,
    **_rules(NAMES, recurrent),
    **_rules(CELLS, cell),
    "pixel_shuffle": pixel_shuffle,
    **_rules(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
}
FIXED_LAYERS: dict[str, Rule] = LAYERS | {
    "linear": linear,
    "scaled_dot_product_attention": fixed_attention,
    **_rules(("matmul", "bmm"), partial(matmul, product=fixed_product)),
    "baddbmm": partial(baddbmm, product=fixed_product),
    "einsum": partial(einsum, product=fixed_product),
    **_rules(("addmm", "mm"), addmm),
}
FREE_LAYERS: dict[str, Rule] = LAYERS | {
    "linear": or_stacked(free_linear),
    "scaled_dot_product_attention": attention,
    **_rules(("matmul", "bmm"), partial(matmul, product=product)),
    "baddbmm": partial(baddbmm, product=product),
    "einsum": partial(einsum, product=product),
    **_rules(("addmm", "mm"), free_addmm),
}
ALIKE: dict[str, Rule] = {
    **_rules(ops.POINTWISE, one_operand(pointwise)),
    **_rules(ops.CASTS, first_operand(cast)),
    **_rules(ops.DROPOUTS, one_operand(dropout)),
    **_rules(ops.LIKE, one_operand(like)),
    **_rules(ops.REDUCTIONS, one_operand(reduce)),
    **_rules(ops.SOFTMAXES, one_operand(softmax)),
    **_rules(ops.POOLS, one_operand(pool)),
    **_rules(ops.PADS, one_operand(pad)),
    "copy": first_operand(copied),
    **_rules(("index", "index_select"), or_weight(found)),
    **_rules(("scatter_add", "scatter_reduce", "index_add"), scatter),
    "where": first_operand(chosen),
    "masked_fill": first_operand(masked_fill),
}
# What each operation does where sizes in the forward stay as they are, and where they may change with the widths.
FIXED: dict[str, Rule] = {
    **FIXED_LAYERS,
    **ALIKE,
    **_rules(ops.JOINS, fixed_cat),
    **_rules(ops.PAIRWISE, first_operand(fixed_pairwise, least=2)),
    **_rules(ops.MOVES, one_operand(fixed_move)),
    **_rules(("select", *TURNS), or_weight(one_operand(fixed_move))),
}
FIXED |= {name: or_same(FIXED[name]) for name in ops.BARE}
FREE: dict[str, Rule] = {
    **FREE_LAYERS,
    **ALIKE,
    **_rules(ops.JOINS, free_cat),
    **_rules(ops.PAIRWISE, first_operand(free_pairwise, least=2)),
    **_rules(ops.MOVES, one_operand(free_move)),
    **_rules(ops.CUTS, or_parts(one_operand(free_move))),
    "select": or_weight(or_parts(one_operand(free_move))),
    **_rules(TURNS, or_weight(one_operand(free_move))),
}
FREE |= {name: or_same(FREE[name]) for name in ops.BARE}


def dead_nodes(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Results that nothing uses, layers left out."""
    dead: set[fx.Node] = set()
    for node in reversed(list(nodes)):
        name = packet(node.target)
        pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        idle = all(user in dead for user in node.users) and not name.startswith(("_assert", "sym_constrain"))
        if idle and node.op == "call_function" and (pure or name == "getitem") and name not in FREE_LAYERS:
            dead.add(node)
    return dead
