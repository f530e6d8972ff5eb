"""What others do with a trained network after training: integers of 8 or 4 bits by row or group, and GPTQ, with zstd behind.

Each gives the network with its rounded weights, and the bytes: the integers (two of 4 bits to a byte), float16 scales, and all
other tensors in float16, in one zstd frame of level 19. What is smaller than a group has a scale for each row.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paring.compression.feedback import factor
from paring.compression.second_moments import Layout, Moments
from paring.compression.tensors import unique, weights_of


def _groups(rows: Tensor, size: int) -> Tensor:
    """(rows, columns) -> (rows, groups, size); one group where the columns are no multiple."""
    parts: Tensor = rows.unflatten(1, (-1, size if size and rows.shape[1] % size == 0 else rows.shape[1]))
    return parts


def _scales(rows: Tensor, bits: int, size: int) -> Tensor:
    largest: Tensor = _groups(rows, size).abs().amax(2)
    found: Tensor = (largest / (2 ** (bits - 1) - 1)).half().float().clamp_min(1e-7)
    return found


def nearest(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Nearest integers of so many bits."""
    wide = scales.repeat_interleave(rows.shape[1] // scales.shape[1], 1)
    return (rows / wide).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def gptq(matrices: Tensor, scales: Tensor, bits: int, factors: Tensor) -> Tensor:
    """GPTQ (Frantar et al., arXiv 2210.17323): columns in order, errors to those behind, scales of groups from the weights as given.

    Args:
        matrices: (blocks, rows, columns).
        scales: (blocks, rows, columns).
        bits: of an integer.
        factors: see `paring.compression.feedback.factor`.
    """
    left, levels = matrices.clone(), torch.empty_like(matrices)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for j in range(matrices.shape[-1]):
        levels[..., j] = (left[..., j] / scales[..., j]).round().clamp(low, high)
        error = (left[..., j] - levels[..., j] * scales[..., j]) / factors[:, j, j, None]
        left[..., j + 1 :] -= error[..., None] * factors[:, j, None, j + 1 :]
    return levels


@torch.no_grad()
def integers(
    net: nn.Module, bits: int, size: int = 0, moments: dict[str, Moments] | None = None
) -> tuple[nn.Module, int]:
    """A network of integers, and the bytes of its file.

    Args:
        net: in float32.
        bits: 8 or 4.
        size: of a group along a row; 0 for whole rows.
        moments: of what the weights read, for GPTQ; None rounds to nearest.
    """
    twin, parts = copy.deepcopy(net), []
    done = set()
    for name, weight in weights_of(twin).items():
        rows = weight.detach().flatten(1)
        scales = _scales(rows, bits, size)
        wide = scales.repeat_interleave(rows.shape[1] // scales.shape[1], 1)
        if moments is not None and name in moments and not moments[name].layout.first:
            layout: Layout = moments[name].layout
            turn = layout.matrices
            found = gptq(turn(weight), turn(wide.view_as(weight)), bits, factor(moments[name].total, 0.01))
            levels = layout.weight(found).flatten(1)
        else:
            levels = nearest(rows, scales, bits)
        weight.copy_((levels * wide).view_as(weight))
        flat = levels.flatten().to(torch.int8).numpy()
        if bits == 4:
            flat = np.append(flat, np.zeros(flat.size % 2, np.int8))
            flat = (flat[::2] & 15) | (flat[1::2] << 4)
        parts += [flat.tobytes(), scales.half().numpy().tobytes()]
        done.add(name)
    for name, value in unique(twin).items():
        if name not in done and value.is_floating_point():
            half = value.half()
            value.copy_(half.to(value.dtype))
            parts.append(half.numpy().tobytes())
    zstd: Any = importlib.import_module("zstandard")
    return twin, len(zstd.ZstdCompressor(level=19).compress(b"".join(parts)))
