"""Does a network compute the same once its gates are folded into the weights?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def outputs(net: Callable[..., Any], arguments: tuple[Any, ...], grad: bool) -> list[Tensor]:
    """Floating-point outputs of the network on the example, with or without recording gradients."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        found = tree_leaves(net(*arguments))
    return [value.detach() for value in found if isinstance(value, Tensor) and value.is_floating_point()]


def same_or_raise(before: list[Tensor], after: list[Tensor], net: nn.Module) -> None:
    for old, new in zip(before, after, strict=True):
        scale = max(1.0, float(old.abs().max())) if old.numel() else 1.0
        differ = float((old - new).abs().max()) if old.numel() else 0.0
        if not differ <= 2**10 * torch.finfo(old.dtype).eps * scale:
            raise RuntimeError(
                f"folding the gates into the weights of this {type(net).__name__} would move its output by {differ:.2g}: "
                "its forward uses the weights of a gated layer without calling that layer. Exclude it from the gates "
                "(at='units:!NAME'), or call the layer"
            )
