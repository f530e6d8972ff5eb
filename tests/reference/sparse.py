"""Sparse layers the slow way: one multiplication after the other, in float64 numbers of Python."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Output of a linear layer, (n, outputs) float64: only weights that are not zero are looked at."""
    out = torch.zeros(len(x), layer.out_features, dtype=torch.float64)
    if layer.bias is not None:
        out += layer.bias.detach().double()
    for o, i in (layer.weight != 0).nonzero().tolist():
        out[:, o] += layer.weight[o, i].item() * x[:, i].double()
    return out


def convolution(layer: nn.Conv1d | nn.Conv2d, x: Tensor, padding: tuple[tuple[int, int], ...]) -> Tensor:
    """Output of a convolution along one or two dimensions, (n, outputs, ...) float64; padding: before and after, per dimension."""
    sizes = [
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, (before, after), d, k, s in zip(
            x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    out = torch.zeros(len(x), layer.out_channels, *sizes, dtype=torch.float64)
    if layer.bias is not None:
        out += layer.bias.detach().double().view(-1, *[1] * len(sizes))
    each = layer.out_channels // layer.groups
    for o, i, *tap in (layer.weight != 0).nonzero().tolist():
        channel = o // each * (layer.in_channels // layer.groups) + i
        for at in itertools.product(*map(range, sizes)):
            place = [
                p * s + t * d - before
                for p, s, t, d, (before, _) in zip(at, layer.stride, tap, layer.dilation, padding, strict=True)
            ]
            if all(0 <= one < size for one, size in zip(place, x.shape[2:], strict=True)):
                out[(slice(None), o, *at)] += (
                    layer.weight[(o, i, *tap)].item() * x[(slice(None), channel, *place)].double()
                )
    return out
