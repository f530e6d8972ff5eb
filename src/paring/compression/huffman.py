"""The size that Deep Compression reports: an estimate, not a file.

Every weight tensor in compressed sparse form: the distance of each nonzero weight to the one before it, in a field of so
many bits that a distance too large takes a filler zero (8 bits for convolutions, 5 for the others), and its index in the
codebook; both Huffman-coded. Codebooks and all other tensors count 32 bits a value. The tables of the Huffman codes are
not counted, as in the paper.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from paring.compression.tensors import unique, weights_of


def estimate(net: nn.Module) -> int:
    """Estimated bytes of a pruned network with shared weights."""
    weights = weights_of(net, binary=True)
    bits = 0
    for name, value in unique(net).items():
        if name in weights:
            bits += _sparse_bits(value.detach(), 8 if value.dim() > 2 else 5)
        else:
            bits += 32 * value.numel()
    return (bits + 7) // 8


def huffman_bits(symbols: Iterable[int]) -> int:
    """Length of the Huffman code of these symbols; a single kind of symbol takes one bit each."""
    counts = Counter(symbols)
    if len(counts) == 1:
        return sum(counts.values())
    heap, total = list(counts.values()), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


def _sparse_bits(weight: Tensor, field: int) -> int:
    flat = weight.flatten()
    where = flat.nonzero().flatten()
    if not len(where):
        return 0
    values, index = flat[where].unique(return_inverse=True)
    distance = torch.diff(where, prepend=where.new_tensor([-1]))
    largest = 2**field
    fillers = (distance - 1) // largest
    distances = [*((distance - 1) % largest).tolist(), *[largest - 1] * int(fillers.sum())]
    indices = [*index.tolist(), *[len(values)] * int(fillers.sum())]
    return huffman_bits(distances) + huffman_bits(indices) + 32 * len(values)
