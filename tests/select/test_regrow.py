"""Exchanges against a naive twin of RigL's code, which ranks all entries by magnitude and then by growth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paring.select import exchange


def naive(
    mask: np.ndarray, magnitude: np.ndarray, growth: np.ndarray, fraction: float
) -> tuple[set[int], set[int], int]:
    """(open now, opened that were closed, how many are exchanged) by sorted lists of all entries."""
    opened = [i for i in range(mask.size) if mask[i]]
    pruned = int(np.float32(fraction) * np.float32(len(opened)))
    ranked = sorted(opened, key=lambda i: (-magnitude[i], i))
    kept = set(ranked[: len(opened) - pruned])
    grown = sorted((i for i in range(mask.size) if i not in kept), key=lambda i: (-growth[i], i))[:pruned]
    return kept | set(grown), {i for i in grown if not mask[i]}, pruned


@pytest.mark.parametrize("density", [0.05, 0.5, 0.82, 0.97, 1.0])
@pytest.mark.parametrize("fraction", [0.0, 0.07, 0.3, 0.29, 1.0])
def test_an_exchange_is_that_of_the_authors_code(density: float, fraction: float) -> None:
    draw = torch.Generator().manual_seed(3)
    mask = torch.rand(10, 10, generator=draw) < density
    magnitude, growth = torch.rand(2, 10, 10, generator=draw)
    found = exchange(mask, magnitude, growth, fraction)
    opened, fresh, _ = naive(mask.flatten().numpy(), magnitude.flatten().numpy(), growth.flatten().numpy(), fraction)
    assert {int(i) for i in found.mask.flatten().nonzero()} == opened
    assert {int(i) for i in found.fresh.flatten().nonzero()} == fresh
    assert int(found.mask.sum()) == int(mask.sum())


def test_more_are_exchanged_than_there_are_closed() -> None:
    """1,620 of 1,980 weights are open: 486 are dropped and 486 opened, although only 360 were closed."""
    mask = torch.zeros(1980, dtype=torch.bool)
    mask[:1620] = True
    magnitude = torch.arange(1980.0)  # 0 to 485 are dropped
    growth = torch.arange(1980.0, 0, -1)  # and are the best to open
    found = exchange(mask, magnitude, growth, 0.3)
    assert torch.equal(found.mask, mask), "all that were dropped come back, and nothing else does"
    far = torch.where(mask, torch.zeros(1980), growth)  # closed ones first
    found = exchange(mask, magnitude, far, 0.3)
    assert bool(found.mask[1620:].all())
    assert int(found.fresh.sum()) == 360
    assert int((~found.mask[:486]).sum()) == 360, "126 of the 486 dropped ones come back"
    assert bool(found.mask[486:1620].all())


def test_the_number_is_rounded_down_and_no_part_beyond_the_whole_is_exchanged() -> None:
    mask = torch.tensor([True] * 9 + [False] * 9)
    found = exchange(mask, torch.ones(18), torch.arange(18.0), 0.3)  # 2.7
    assert int(found.fresh.sum()) == 2
    with pytest.raises(ValueError, match="must lie in"):
        exchange(mask, torch.ones(18), torch.ones(18), 1.2)
