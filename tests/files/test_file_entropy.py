"""Files against the entropy of what is in them: independent symbols of every kind of tensor, 12,000 and more of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paring.files import pack


def _drawn(shares: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), size=count, p=shares / shares.sum())


def _geometric(symbols: int, ratio: float) -> np.ndarray:
    return ratio ** np.arange(symbols)


def _codebook(shares: np.ndarray) -> Callable[[int], Tensor]:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=len(shares)).astype(np.float32))
    return lambda count: values[torch.from_numpy(_drawn(shares, count, 2))].view(-1, 100)


def _pruned(share: float, values: int) -> Callable[[int], Tensor]:
    shares = np.array([1 - share, *[share / values] * values])
    book = torch.cat([torch.zeros(1), torch.randn(values, generator=torch.Generator().manual_seed(3))])
    return lambda count: book[torch.from_numpy(_drawn(shares, count, 4))].view(-1, 100)


def _grid(shares: np.ndarray, dtype: torch.dtype) -> Callable[[int], Tensor]:
    def made(count: int) -> Tensor:
        whole = torch.from_numpy(_drawn(shares, count, 5)) - len(shares) // 2
        return (whole if dtype == torch.int8 else whole * 0.013).to(dtype).view(-1, 100)

    return made


KINDS: dict[str, Callable[[int], Tensor]] = {
    **{f"{k} values, uniform": _codebook(np.ones(k)) for k in (2, 3, 16, 64, 256)},
    **{f"{k} values, skewed": _codebook(_geometric(k, 0.7)) for k in (2, 5, 16, 40)},
    "float16, 16 values": lambda count: _codebook(_geometric(16, 0.8))(count).half(),
    "pruned to 5 %, 8 values": _pruned(0.05, 8),
    "pruned to 30 %, 2 values": _pruned(0.3, 2),
    "pruned to 1 %, 16 values": _pruned(0.01, 16),
    "grid of 15": _grid(np.ones(15), torch.float32),
    "grid, bell": _grid(np.exp(-(np.linspace(-3, 3, 61) ** 2) / 2), torch.float32),
    "int8": _grid(np.exp(-(np.linspace(-3, 3, 101) ** 2) / 2), torch.int8),
    "bool": lambda count: torch.from_numpy(_drawn(np.array([0.9, 0.1]), count, 6)).bool().view(-1, 100),
}


@pytest.mark.parametrize("count", [12_000, 120_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_takes_its_entropy(kind: str, count: int, tmp_path: Path) -> None:
    """At most 1 % above the entropy of the symbols, and what header and codebook take."""
    tensor = KINDS[kind](count)
    values, counts = tensor.unique(return_counts=True)
    share = counts.double() / count
    bits = float(-(share * share.log2()).sum()) * count
    path = tmp_path / "a.pare"
    found = pack({"w": tensor}, path)
    assert found == path.stat().st_size
    alone = pack({"w": tensor[:1, :1].clone()}, tmp_path / "b.pare")  # header and checksums
    book = len(values) * (tensor.element_size() + math.log2(count) / 8)  # values, and how often each comes
    assert found <= 1.01 * bits / 8 + alone + book + 20
