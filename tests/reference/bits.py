"""Hard-threshold networks the slow way: contractions summed exactly in float64, everything else by the modules themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def signs(*shape: int) -> Tensor:
    """Random ±1."""
    return torch.where(torch.rand(shape) > 0.5, 1.0, -1.0)


def levels(x: Tensor, steps: int) -> Tensor:
    """Whole numbers behind the values of a staircase of so many steps; of a sign (0 steps) its values."""
    return x.double() if steps == 0 else (x.double() * steps).round()


def contraction(module: nn.Conv2d | nn.Linear, x: Tensor, steps: int) -> Tensor:
    """float32(scale / steps * n + bias) with the whole sums n, position by position of the filter."""
    weight = module.weight.detach().double().sign()
    factor = module.weight.detach().double().flatten(1).abs().amax(1) * (1 / steps if steps else 1.0)
    bias = torch.zeros(len(weight)).double() if module.bias is None else module.bias.detach().double()
    if isinstance(module, nn.Linear):
        return (factor * (levels(x, steps) @ weight.T) + bias).float()
    total = F.conv2d(
        levels(x, steps), weight, None, module.stride, module.padding, module.dilation, module.groups
    )  # sums of whole numbers: exact
    return (factor.view(-1, 1, 1) * total + bias.view(-1, 1, 1)).float()


def popcount_contraction(positive: list[list[int]], bits: list[list[int]]) -> list[list[int]]:
    """count[row][channel] = Σ popcount(x xor w) over words, in plain Python."""
    return [[sum((x ^ w).bit_count() for x, w in zip(row, line, strict=True)) for line in positive] for row in bits]


@torch.no_grad()
def lively(net: nn.Module, *, scale: bool = False, dyadic: bool = False, first: int = 1, last: int = 1) -> nn.Module:
    """Eval mode, ±1 weights but in the first and last layers, norms that do something, some with scale 0.

    scale: ±α instead of ±1. dyadic: biases of eighths, with which float32 sums of ±1 are exact.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for module in layers[first : len(layers) - last]:
        size = torch.rand(len(module.weight), *[1] * (module.weight.dim() - 1)) + 0.1 if scale else torch.ones(())
        module.weight.copy_(signs(*module.weight.shape) * size)
    for module in layers:
        if module.bias is not None:
            bias = 3 * torch.randn_like(module.bias)
            module.bias.copy_((8 * bias).round() / 8 if dyadic else bias)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            spread = max(1.0, float(module.num_features) ** 0.5)
            module.weight.normal_()
            module.weight[torch.rand_like(module.weight) < 0.1] = 0
            module.bias.normal_()
            module.running_mean.normal_().mul_(spread)
            module.running_var.uniform_(0.1, spread**2)
    return net.eval()
