"""Bits in words: bit j of word i is entry 64 i + j; what a word has beyond the last entry is 0."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 64


def packed(bits: Tensor) -> Tensor:
    """(..., n) bool -> (..., ⌈n / 64⌉) int64."""
    count = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], words_for(count) * WORD), dtype=bool)
    padded[..., :count] = bits.numpy()
    lines = np.packbits(padded, axis=-1, bitorder="little").view("<i8")
    return torch.from_numpy(np.ascontiguousarray(lines.astype(np.int64)))


def unpacked(words: Tensor, count: int) -> Tensor:
    """The inverse of `packed`: (..., ⌈count / 64⌉) int64 -> (..., count) bool."""
    lines = np.ascontiguousarray(words.numpy()).astype("<i8").view(np.uint8)
    bits = np.unpackbits(lines, axis=-1, bitorder="little", count=count)
    return torch.from_numpy(bits.astype(bool))


def packed_weights(positive: Tensor, groups: int) -> Tensor:
    """Weights as the kernels read them.

    Args:
        positive: (O, C / groups, kh, kw) bool, which weights are positive.
        groups: of the convolution.

    Returns:
        int64 (groups, ⌈O / groups / 64⌉, kh kw ⌈C / groups / 64⌉, 64), the words of a filter ordered by tap, then channel.
        Filters that fill up the last block are 0.
    """
    filters, channels = positive.shape[0] // groups, positive.shape[1]
    taps = positive.flatten(2).transpose(1, 2).reshape(groups, filters, -1, channels)
    lines = packed(taps).flatten(2)
    blocks = words_for(filters)
    full = lines.new_zeros(groups, blocks * WORD, lines.shape[2])
    full[:, :filters] = lines
    return full.view(groups, blocks, WORD, -1).transpose(2, 3).contiguous()


def unpacked_weights(words: Tensor, filters: int, channels: int, kernel: tuple[int, int]) -> Tensor:
    """The inverse of `packed_weights`; `filters` and `channels` are those of one group."""
    groups, blocks, size, _ = words.shape
    taps = kernel[0] * kernel[1]
    lines = words.transpose(2, 3).reshape(groups, blocks * WORD, taps, size // taps)[:, :filters]
    bits = unpacked(lines, channels)
    return bits.permute(0, 1, 3, 2).reshape(groups * filters, channels, *kernel)


def ones(words: Tensor) -> Tensor:
    """Number of bits that are set in each word, int64."""
    counts = np.bitwise_count(words.numpy().view(np.uint64))
    return torch.from_numpy(counts.astype(np.int64))


def words_for(count: int) -> int:
    """How many words hold so many bits."""
    return -(-count // WORD)
