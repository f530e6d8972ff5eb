"""Naive twin of the grid rules: how many heads, query/key pairs and value dimensions an attention has to keep."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_sizes(q: Tensor, k: Tensor, v: Tensor, heads: int, read: Tensor | None = None) -> tuple[int, int, int]:
    """Heads, pairs per head and value dimensions per head that stay.

    q, k, v (heads * d, inputs + 1): rows of weights with the bias behind. read (heads * d,): the output reads it. A pair
    matters unless its query row is zero or its key row has no weight (a constant key shifts all scores alike).
    """
    d, living, pairs, values = len(q) // heads, 0, 0, 0
    for h in range(heads):
        rows = range(h * d, (h + 1) * d)
        live = sum(bool((v[i, :-1] != 0).any()) and (read is None or bool(read[i])) for i in rows)
        if live == 0:
            continue
        living += 1
        values = max(values, live)
        pairs = max(pairs, sum(bool((q[i] != 0).any()) and bool((k[i, :-1] != 0).any()) for i in rows))
    return (living, max(pairs, 1), values) if living else (1, 1, 1)


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Weight and bias side by side."""
    return torch.cat([weight.detach(), bias.detach()[:, None]], 1)
