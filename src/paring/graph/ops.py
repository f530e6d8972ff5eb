"""Which tensor operations the interpretation understands, by the name of their aten packet (no trailing underscore).

Everything that is not listed here is a barrier: what reaches it is kept.
"""

from __future__ import annotations

# One tensor in, its entries moved, repeated or left out, nothing computed.
MOVES = frozenset(
    """view _unsafe_view reshape flatten unflatten transpose permute t numpy_T mT mH movedim swapaxes swapdims expand
    expand_as view_as reshape_as unsqueeze squeeze contiguous clone detach alias lift_fresh lift_fresh_copy flip repeat
    repeat_interleave narrow slice select chunk split split_with_sizes unbind unsafe_chunk unsafe_split
    tensor_split""".split()
)

# Moves that may leave entries out.
CUTS = frozenset(
    """narrow slice select chunk split split_with_sizes unbind unsafe_chunk unsafe_split tensor_split""".split()
)

# Applied to each entry alone; the other arguments are numbers.
POINTWISE = frozenset(
    """relu relu6 gelu sigmoid tanh silu leaky_relu hardswish hardsigmoid hardtanh softplus elu selu celu mish
    log_sigmoid threshold hardshrink softshrink tanhshrink abs neg exp expm1 log log1p sqrt rsqrt square reciprocal
    sin cos erf sign floor ceil round clamp clamp_min clamp_max pow""".split()
)

# Casts: the interpretation computes in float64, so a cast between floating types leaves values alone.
CASTS = frozenset("to _to_copy type_as float double half".split())

DROPOUTS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout".split())

# Two operands, entry by entry, with the reason why units that meet here are coupled.
PAIRWISE = {
    "add": "coupled by a residual add",
    "sub": "coupled by a residual add",
    "rsub": "coupled by a residual add",
    "mul": "coupled by a product",
    "div": "coupled by a quotient",
    "maximum": "coupled by a maximum",
    "minimum": "coupled by a minimum",
}

REDUCTIONS = frozenset("mean sum amax amin".split())

# Work on the positions of one channel at a time; the digit in the name is the number of spatial dimensions.
POOLS = frozenset(
    [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)]
    + [f"max_pool{n}d_with_indices" for n in (2, 3)]
    + ["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"]
    + ["upsample_trilinear3d"]
)

PADS = frozenset("pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d".split())

# Make a known tensor out of nothing but numbers.
FACTORIES = frozenset("zeros ones full arange linspace eye scalar_tensor".split())
LIKE = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full".split())

LINEAR = frozenset(["linear"])
CONVS = frozenset(["conv1d", "conv2d", "conv3d"])
EMBEDDINGS = frozenset(["embedding"])
BATCH_NORMS = frozenset(["batch_norm"])
