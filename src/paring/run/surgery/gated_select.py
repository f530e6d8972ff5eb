"""Linear layers that read only some columns of their input while training: `SelectLinear` with gates.

A closed input gate in front of a single position of a flattened map frees a column of the layer, but not the map's
channel; so the layer goes on reading the same input, and picks its columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Gated, Inputs, SelectLinear
from paring.core.layers import GatedLinear


class GatedSelectLinear(GatedLinear, SelectLinear):
    """`SelectLinear` with gates; its input gates have one entry for every column that is read."""

    def forward(self, input: Tensor) -> Tensor:
        return GatedLinear.forward(self, input.index_select(-1, self.reads))


def set_reads(layer: nn.Module, reads: Tensor | None) -> None:
    """From now on this Linear (gated or not) reads these columns of its input, None: all of them."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"only a Linear can read some columns of its input, not a {type(layer).__name__}")
    gated = isinstance(layer, Gated)
    if reads is None:
        layer.__class__ = GatedLinear if gated else nn.Linear
        layer._buffers.pop("reads", None)
        return
    layer.__class__ = GatedSelectLinear if gated else SelectLinear
    layer.register_buffer("reads", reads.to(layer.weight.device))


@torch.no_grad()
def widen(net: nn.Module, example: Inputs) -> dict[str, int]:
    """Turn every ungated `SelectLinear` of `net` into the Linear of its whole input, with zero columns; in place.

    Returns:
        Width of the input of each of these layers. It is found by running `net` on the example, in eval mode.
    """
    found = {name: module for name, module in net.named_modules() if type(module) is SelectLinear}
    if not found:
        return {}
    widths: dict[str, int] = {}

    def seen(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: widths.update({name: inputs[0].shape[-1]})

    hooks = [module.register_forward_pre_hook(seen(name)) for name, module in found.items()]
    modes = {module: module.training for module in net.modules()}
    try:
        example.call(net.eval())
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    for name, module in found.items():
        if name not in widths:
            continue  # never called, so nothing is known about it
        weight = module.weight.new_zeros(module.out_features, widths[name])
        weight[:, module.reads] = module.weight
        module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
        module.in_features = widths[name]
        set_reads(module, None)
    return widths
