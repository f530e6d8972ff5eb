"""What goes into the layers of a gated network, and comes out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Inputs
from paring.pruning.gated import GatedCopy


@torch.no_grad()
def passed(gated: GatedCopy, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each linear layer and convolution of the wiring, in one pass; of its last call."""
    modules, seen, handles = dict(gated.net.named_modules()), {}, []
    for layer in gated.wiring.layers:
        module = modules.get(layer.name)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):

            def note(_: nn.Module, args: tuple[Any, ...], out: Tensor, name: str = layer.name) -> None:
                seen[name] = args[0].detach(), out.detach()

            handles.append(module.register_forward_hook(note))
    try:
        inputs.call(gated.net)
    finally:
        for handle in handles:
            handle.remove()
    return seen
