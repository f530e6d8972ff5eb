"""Allocations against naive twins and hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paring.select import ErdosRenyi, Given, Global, Uniform

SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc1": (64, 128), "fc2": (10, 64)}


def scores(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}


def naive_erdos_renyi(shapes: dict[str, tuple[int, ...]], density: float, kernel: bool) -> dict[str, float]:
    """Solve the factor by bisection over all layers, each capped at 1."""
    raw = {n: sum(s if kernel else s[:2]) / math.prod(s if kernel else s[:2]) for n, s in shapes.items()}
    total = sum(math.prod(s) for s in shapes.values())
    low, high = 0.0, 1e9
    for _ in range(300):
        middle = (low + high) / 2
        kept = sum(min(1.0, middle * raw[n]) * math.prod(s) for n, s in shapes.items())
        low, high = (middle, high) if kept < density * total else (low, middle)
    return {n: min(1.0, high * raw[n]) for n in shapes}


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.37, 0.8, 1.0])
def test_erdos_renyi_is_what_bisection_finds(kernel: bool, density: float) -> None:
    found = ErdosRenyi(kernel=kernel).counts(scores(), density)
    expected = naive_erdos_renyi(SHAPES, density, kernel)
    for name, shape in SHAPES.items():
        assert abs(found[name] - expected[name] * math.prod(shape)) <= 0.5 + 1e-6
    total = sum(math.prod(s) for s in SHAPES.values())
    assert abs(sum(found.values()) - density * total) <= len(SHAPES)


def test_erdos_renyi_kernel_by_hand() -> None:
    two = {"a": torch.rand(4, 4), "b": torch.rand(8, 8)}  # raw 8/16 and 16/64; 80 weights, 20 kept
    assert ErdosRenyi().counts(two, 0.25) == {"a": 7, "b": 13}  # factor 20 / (8 + 16): 6.67 and 13.33


def test_global_keeps_the_highest_of_all() -> None:
    given = scores(1)
    found = Global().counts(given, 0.2)
    flat = torch.cat([s.flatten() for s in given.values()]).sort(descending=True).values
    threshold = flat[round(0.2 * len(flat)) - 1]
    assert found == {name: int((s >= threshold).sum()) for name, s in given.items()}


def test_global_can_leave_something_in_every_layer() -> None:
    given = {"a": torch.rand(5, 5) + 10, "b": torch.rand(5, 5)}
    assert Global().counts(given, 0.5)["b"] == 0
    assert Global(least=3).counts(given, 0.5) == {"a": 22, "b": 3}


def test_uniform() -> None:
    assert Uniform().counts(scores(), 0.1) == {"conv1": 43, "conv2": 461, "fc1": 819, "fc2": 64}
    assert Uniform(first_dense=True).counts(scores(), 0.1)["conv1"] == 432


def test_given_is_reached_and_approached() -> None:
    mask = {name: score > 0.7 for name, score in scores(2).items()}
    given = Given.of(mask)
    kept = {name: int(m.sum()) for name, m in mask.items()}
    total = sum(m.numel() for m in mask.values())
    assert given.counts(scores(), sum(kept.values()) / total) == kept
    assert given.counts(scores(), 0.0) == kept
    assert given.counts(scores(), 1.0) == {name: math.prod(shape) for name, shape in SHAPES.items()}
    half = given.counts(scores(), (1 + sum(kept.values()) / total) / 2)
    for name, shape in SHAPES.items():
        assert abs(half[name] - (kept[name] + math.prod(shape)) / 2) <= 1


def test_given_names_the_layer_it_lacks() -> None:
    with pytest.raises(ValueError, match="no density for layer 'fc2'"):
        Given((("conv*", 0.5), ("fc1", 0.1))).counts(scores(), 0.5)
    with pytest.raises(ValueError, match="must lie in"):
        Given((("a", 1.5),))


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("allocation", [Global(), Uniform(), ErdosRenyi(), Given((("*", 0.5),))])
def test_refuses_a_density_out_of_range(allocation: Global, density: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        allocation.counts(scores(), density)
    with pytest.raises(ValueError, match="no layers"):
        allocation.counts({}, 0.5)
