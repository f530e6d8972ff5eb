"""Codebooks against loops, and what must never get worse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.compression.codebook import Codebook, assign, fit, linear, start


def cost(weights: Tensor, book: Codebook, curvature: Tensor, rate: float) -> float:
    """sum h (w - c)^2 - rate sum log2 p, in a loop."""
    flat, index = weights.flatten().tolist(), book.index.flatten().tolist()
    share = [index.count(k) / len(index) for k in range(len(book.values))]
    pairs = zip(flat, index, curvature.flatten().tolist(), strict=True)
    return sum(h * (w - float(book.values[k])) ** 2 - rate * math.log2(share[k]) for w, k, h in pairs)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from([0.0, 0.01, 0.2]), st.booleans())
def test_sweeps_never_make_it_worse(seed: int, size: int, rate: float, zero: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    curvature = torch.rand(12, 7, generator=generator, dtype=torch.float64) + 0.1
    first = start(weights, size, zero=zero)
    costs = [
        cost(weights, fit(weights, first, curvature=curvature, rate=rate, zero=zero, sweeps=n), curvature, rate)
        for n in range(1, 8)
    ]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))
    found = fit(weights, first, curvature=curvature, rate=rate, zero=zero)
    assert len(found.values) <= size
    assert found.index.shape == weights.shape
    assert set(found.index.unique().tolist()) == set(range(len(found.values)))
    if not zero:
        for k, value in enumerate(found.values.tolist()):
            chosen = found.index == k
            mean = (curvature[chosen] * weights[chosen]).sum() / curvature[chosen].sum()
            assert value == pytest.approx(mean.item())


def test_assign_is_the_nearest_in_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    weights, h = torch.randn(200, generator=generator).double(), torch.rand(200, generator=generator).double()
    values = torch.tensor([-1.0, 0.0, 0.3, 2.0]).double()
    for price in (torch.zeros(4).double(), torch.tensor([0.3, 0.0, 0.1, 0.5]).double()):
        slow = [
            min(range(4), key=lambda k: h[i].item() * (weights[i] - values[k]).item() ** 2 + price[k].item())
            for i in range(200)
        ]
        assert assign(weights, values, h, price).tolist() == slow


def test_two_clear_clusters_are_found() -> None:
    weights = torch.cat([torch.full((50,), -1.0), torch.full((30,), 2.0)]) + 0.01 * torch.sin(torch.arange(80.0))
    found = fit(weights, start(weights, 2))
    assert found.values.tolist() == pytest.approx([-1.0, 2.0], abs=0.01)
    assert found.bits == pytest.approx(80 * (-(5 / 8) * math.log2(5 / 8) - (3 / 8) * math.log2(3 / 8)) + 64)


def test_zero_stays_zero() -> None:
    weights = torch.randn(500, generator=torch.Generator().manual_seed(2))
    weights[:300] = 0
    found = fit(weights, start(weights, 4, zero=True), zero=True)
    assert (found.values == 0).sum() == 1
    assert (found.weights[:300] == 0).all()


def test_a_price_for_bits_lowers_the_entropy() -> None:
    weights = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    first = start(weights, 16)
    bits = [fit(weights, first, rate=rate).bits for rate in (0.0, 0.01, 0.1)]
    assert bits[0] > bits[1] > bits[2]


def test_odd_ones() -> None:
    assert fit(torch.full((5,), 3.0), start(torch.full((5,), 3.0), 4)).values.tolist() == [3.0]
    assert fit(torch.zeros(5), start(torch.zeros(5), 4, zero=True), zero=True).values.tolist() == [0.0]
    with pytest.raises(ValueError, match="at least one"):
        start(torch.ones(3), 0)
    with pytest.raises(ValueError, match="must have the shape"):
        fit(torch.ones(3), torch.ones(1), curvature=torch.ones(2))


def test_linear_values_are_evenly_spread() -> None:
    assert linear(torch.tensor([3.0, -1.0, 0.5]), 5).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert linear(torch.ones(4), 3).tolist() == [1.0]
    with pytest.raises(ValueError, match="at least one"):
        linear(torch.ones(3), 0)
