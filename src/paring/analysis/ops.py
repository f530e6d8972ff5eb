"""Which tensor operations the interpretation understands, by the name of their aten packet (no trailing underscore).

Everything that is not listed here is a barrier: what reaches it is kept.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Moves that may leave entries out.
CUTS = _names(
    "narrow slice select chunk split split_with_sizes unbind unsafe_chunk unsafe_split"
    " unsafe_split_with_sizes tensor_split"
)

# One tensor in, its entries moved, repeated or left out, nothing computed.
MOVES = CUTS | _names(
    "view _unsafe_view reshape flatten unflatten transpose permute t numpy_T mT movedim swapaxes swapdims expand "
    "expand_as view_as reshape_as unsqueeze squeeze contiguous clone detach alias lift_fresh lift_fresh_copy flip "
    "repeat repeat_interleave pixel_unshuffle"
)

# Moves that only write another shape over the same order of entries.
RESHAPES = _names("view _unsafe_view reshape flatten unflatten")

# The same, of dimensions of size one as well: every entry stays where it is in memory.
BARE = RESHAPES | {"squeeze", "unsqueeze"}

# Applied to each entry alone; the other arguments are numbers.
POINTWISE = _names(
    "relu relu6 gelu sigmoid tanh silu leaky_relu hardswish hardsigmoid hardtanh softplus elu selu celu mish "
    "log_sigmoid threshold hardshrink softshrink tanhshrink abs neg exp expm1 log log1p sqrt rsqrt square reciprocal "
    "sin cos tan sinh cosh asinh atan erf erfc special_erf special_erfc special_expit special_expm1 special_log1p "
    "exp2 special_exp2 log2 log10 logit special_logit sign sgn floor ceil round trunc frac fix clamp clamp_min "
    "clamp_max clip pow absolute negative positive nan_to_num"
)

# Casts: the interpretation computes in float64, so a cast between floating types leaves values alone.
CASTS = _names("to _to_copy type_as float double half")

DROPOUTS = _names("dropout feature_dropout alpha_dropout feature_alpha_dropout")

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

JOINS = _names("cat stack concat concatenate")
REDUCTIONS = _names("mean sum amax amin")

# Work on the positions of one channel at a time; the digit in the name is the number of spatial dimensions.
POOLS = _names(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)

PADS = _names(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d"
)

SOFTMAXES = _names("softmax _softmax _safe_softmax log_softmax _log_softmax")

# Make a known tensor out of nothing but numbers, or of nothing but a shape.
FACTORIES = _names("zeros ones full arange linspace eye scalar_tensor")
LIKE = _names("zeros_like ones_like full_like new_zeros new_ones new_full")
