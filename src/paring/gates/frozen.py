"""Weights that stay as they were initialised, for methods that train nothing but masks."""

from __future__ import annotations

import torch
from torch import nn

from paring.core import gates


def rest_weights(net: nn.Module) -> None:
    """Take the gradients of everything but the gates away: no optimizer moves or decays a parameter without one."""
    gated = {id(p) for _, _, gate in gates(net) for p in gate.parameters()}
    for parameter in net.parameters():
        if id(parameter) not in gated:
            parameter.grad = None


@torch.no_grad()
def set_signed_constant(weight: nn.Parameter, size: float) -> None:
    """Every weight becomes `size` with the sign it has (zero counts as positive)."""
    weight.copy_(torch.where(weight < 0, -size, size))
