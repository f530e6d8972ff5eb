"""What each operation multiplies, counted by hand; one network with one operation per module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.cost import measure


class One(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x).mean()


class All(nn.Module):
    def __init__(self, operations: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: One(operation) for name, operation in operations.items()})

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts.values()) + x  # type: ignore[no-any-return]


def counts(operations: dict[str, Callable[[Tensor], Tensor]]) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """MACs of each operation on (2, 5, 6) for one example, and what was not counted."""
    found = measure(All(operations), torch.randn(2, 5, 6))
    return {row.name.removeprefix("parts."): row.macs for row in found.rows}, found.uncounted


def with_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu"):
        return x @ x.mT


def test_products_are_counted_whatever_they_are_called() -> None:
    ones = torch.ones
    operations: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "matmul": (lambda x: x.unsqueeze(1) @ ones(3, 6, 2), 3 * 5 * 6 * 2),  # broadcast over three
        "linalg_matmul": (lambda x: torch.linalg.matmul(x, x.mT), 5 * 5 * 6),
        "vector": (lambda x: x @ ones(6), 5 * 6),
        "dot": (lambda x: torch.dot(x[0, 0], x[0, 1]), 3),  # 6 for two examples
        "inner": (lambda x: torch.inner(x, ones(4, 6)), 5 * 4 * 6),
        "tensordot": (lambda x: torch.tensordot(x, ones(6, 3), dims=1), 5 * 6 * 3),
        "baddbmm": (lambda x: torch.baddbmm(ones(2, 5, 5), x, x.mT), 5 * 5 * 6),
        "addbmm": (lambda x: torch.addbmm(ones(5, 5), x, x.mT), 5 * 5 * 6),
        "addmm": (lambda x: torch.addmm(ones(3), x[:, 0], ones(6, 3)), 6 * 3),
        "bilinear": (lambda x: F.bilinear(x, x, ones(4, 6, 6)), 5 * (4 * 6 * 6 + 4 * 6)),
        "linear": (lambda x: F.linear(x, ones(3, 6), ones(3)), 5 * 6 * 3),
        "conv": (lambda x: F.conv1d(x, ones(3, 5, 2)), 3 * 5 * 5 * 2),
        "conv_transpose": (lambda x: F.conv_transpose1d(x, ones(5, 3, 2)), 6 * 5 * 3 * 2),
        "einsum": (lambda x: torch.einsum("bti,bsi->bts", x, x), 5 * 5 * 6),
        "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 2 * 5 * 5 * 6),
        "autocast": (with_autocast, 5 * 5 * 6),
    }
    assert counts({name: operation for name, (operation, _) in operations.items()}) == (
        {name: macs for name, (_, macs) in operations.items()},
        (),
    )


def test_what_acts_entry_by_entry_is_free() -> None:
    free: dict[str, Callable[[Tensor], Tensor]] = {
        "product": lambda x: x * x,
        "einsum": lambda x: torch.einsum("btc,btc->btc", x, x),
        "normalize": F.normalize,
        "norm": lambda x: torch.linalg.norm(x, dim=-1),
        "similarity": lambda x: F.cosine_similarity(x, x),
        "interpolate": lambda x: F.interpolate(x, size=9),
        "unfold": lambda x: F.unfold(x[:, None], 2),
        "cumulative": lambda x: x.cumsum(1).softmax(-1),
    }
    assert counts(free) == ({}, ())


def test_what_is_not_known_is_named() -> None:
    unknown: dict[str, Callable[[Tensor], Tensor]] = {
        "inverse": lambda x: torch.linalg.inv(x @ x.mT + torch.eye(5)),
        "fourier": lambda x: torch.fft.fft(x).real,
        "distance": lambda x: torch.cdist(x, x),
    }
    rows, uncounted = counts(unknown)
    assert rows == {"inverse": 5 * 5 * 6}
    assert [name.partition(" (")[0] for name in uncounted] == ["parts.inverse", "parts.fourier", "parts.distance"]
    assert uncounted[0] == "parts.inverse (linalg_inv)"
