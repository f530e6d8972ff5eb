"""Quantisers as llama.cpp, GPTQ, torchao and bitsandbytes define them: what a tensor is after it was dequantised."""

from __future__ import annotations

import torch
from torch import Tensor

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def symmetric(weights: Tensor, size: int, dtype: torch.dtype, largest: int = 7) -> Tensor:
    """q s: integers times the largest over 7 (or 127)."""
    rows = weights.reshape(-1, size)
    scale = rows.abs().amax(1, keepdim=True) / largest
    return ((rows / scale).round().to(dtype) * scale.to(dtype)).reshape(weights.shape)


def with_zero_points(weights: Tensor, size: int, dtype: torch.dtype, steps: int = 15) -> Tensor:
    """(q - z) s with integers q and z: GPTQ, AWQ, torchao's integer zero points."""
    rows = weights.reshape(-1, size)
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = (most - least) / steps
    zero = (-least / scale).round()
    level = ((rows / scale).round() + zero).clamp(0, steps)
    return ((level.to(dtype) - zero.to(dtype)) * scale.to(dtype)).reshape(weights.shape)


def tinygemm(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(q - 8) s + z with floats z, every operation in `dtype`: torchao's int4 weights."""
    rows = weights.to(dtype).reshape(-1, size)
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = (most - least) / 15
    zero = least + scale * 8
    level = ((rows - least) / scale).round().clamp(0, 15)
    return ((level - 8).to(dtype) * scale + zero).reshape(weights.shape)


def nf4(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """One of 16 quantiles times the largest, as bitsandbytes has it."""
    book, rows = torch.tensor(NF4), weights.reshape(-1, size)
    scale = rows.abs().amax(1, keepdim=True)
    level = ((rows / scale)[..., None] - book).abs().argmin(-1)
    return (book[level] * scale).to(dtype).reshape(weights.shape)


def q4_0(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(q - 8) d with a float16 scale, of which the largest entry is -8: llama.cpp."""
    rows = weights.reshape(-1, size)
    scale = rows.gather(1, rows.abs().argmax(1, keepdim=True)) / -8
    level = (rows / scale + 8.5).floor().clamp(0, 15)
    return ((level - 8) * scale.half().float()).to(dtype).reshape(weights.shape)


def q4_1(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """q d + m with float16 numbers d and m: llama.cpp."""
    rows = weights.reshape(-1, size)
    least = rows.amin(1, keepdim=True)
    scale = (rows.amax(1, keepdim=True) - least) / 15
    level = ((rows - least) / scale + 0.5).floor().clamp(0, 15)
    return (level * scale.half().float() + least.half().float()).to(dtype).reshape(weights.shape)


def q8_0(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """q d with a float16 scale and eight bits: llama.cpp."""
    rows = weights.reshape(-1, size)
    scale = rows.abs().amax(1, keepdim=True) / 127
    return ((rows / scale).round() * scale.half().float()).to(dtype).reshape(weights.shape)


def doubly(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """q s where the scale is itself six bits times the scale of 16 groups: llama.cpp's k-quants, and QLoRA's second step."""
    rows = weights.reshape(-1, size)
    scale = (rows.abs().amax(1, keepdim=True) / 7).reshape(-1, 16)
    above = (scale.amax(1, keepdim=True) / 63).half().float()
    scale = (above * (scale / above).round().clamp(min=1)).reshape(-1, 1)
    return ((rows / scale).round().clamp(-8, 7) * scale).to(dtype).reshape(weights.shape)


def nf4_doubly(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """nf4 whose scales, less their mean, are one of 256 numbers times the largest of 256: bitsandbytes' double quantisation."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        ends = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * (ends[:-1] + ends[1:]) / 2
        numbers += [*middles.tolist(), *(-middles).tolist()]
    book = torch.tensor(sorted(numbers))
    rows = weights.reshape(-1, size)
    scale = rows.abs().amax(1)
    mean = scale.mean()
    blocks = (scale - mean).reshape(-1, 256)
    above = blocks.abs().amax(1, keepdim=True)
    scale = ((book[((blocks / above)[..., None] - book).abs().argmin(-1)] * above) + mean).reshape(-1, 1)
    level = ((rows / rows.abs().amax(1, keepdim=True))[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    return (torch.tensor(NF4)[level] * scale).to(dtype).reshape(weights.shape)


def nf4_narrow(weights: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """nf4 with list, scales and products all in `dtype`: torchao."""
    book, rows = torch.tensor(NF4).to(dtype), weights.to(dtype).reshape(-1, size)
    scale = rows.abs().amax(1, keepdim=True)
    level = ((rows / scale)[..., None] - book).abs().argmin(-1)
    return (book[level] * scale).reshape(weights.shape)
