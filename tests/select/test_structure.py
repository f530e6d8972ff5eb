"""Masks from scores, against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.select import NM, Blocks, ErdosRenyi, Global, Structure, Uniform, Units, Weights, masks, top


def naive_blocks(score: Tensor, rows: int, columns: int, keep: int) -> Tensor:
    flat = score.reshape(score.shape[0], score.shape[1], -1)
    found = []
    for a in range(0, score.shape[0], rows):
        for b in range(0, score.shape[1], columns):
            found.append((flat[a : a + rows, b : b + columns].sum().item(), a, b))
    mask = torch.zeros_like(flat, dtype=torch.bool)
    for _, a, b in sorted(found, key=lambda one: -one[0])[:keep]:
        mask[a : a + rows, b : b + columns] = True
    return mask.view(score.shape)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_blocks(rows: int, columns: int, tall: int, wide: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand((rows, columns, 2, 2), generator=generator, dtype=torch.float64)
    structure = Blocks(tall, wide)
    pieces = structure.pieces(score)
    keep = max(1, round(0.4 * pieces.numel()))
    assert torch.equal(masks({"w": score}, 0.4, Uniform(), structure)["w"], naive_blocks(score, tall, wide, keep))


def test_units_go_whole() -> None:
    score = torch.tensor([[1.0, 5.0], [4.0, 4.0], [0.0, 1.0]])
    assert masks({"w": score}, 1 / 3, Uniform(), Units())["w"].tolist() == [
        [False, False],
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize("shape", [(3, 8), (2, 6), (4, 8, 3, 3), (2, 3)])
def test_n_of_m(shape: tuple[int, ...]) -> None:
    score = torch.rand(shape)
    mask = NM(2, 4).best(score)
    flat = score.reshape(shape[0], shape[1], -1)
    found = mask.reshape(shape[0], shape[1], -1)
    for row in range(shape[0]):
        for position in range(flat.shape[2]):
            for start in range(0, shape[1], 4):
                group = flat[row, start : start + 4, position]
                chosen = found[row, start : start + 4, position]
                keep = -(-2 * len(group) // 4)
                assert int(chosen.sum()) == keep
                assert set(group[chosen].tolist()) == set(group.sort(descending=True).values[:keep].tolist())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (2, 256)])
def test_n_of_m_before_the_density_has_fallen(n: int, m: int) -> None:
    score = torch.rand(4, 2 * m)
    for density in (1.0, 0.9, 0.7, n / m, 0.0):
        kept = NM(n, m).best(score, density).view(4, 2, m).sum(2)
        assert kept.unique().tolist() == [max(n, math.ceil(round(density * m, 6)))]


def test_n_of_m_takes_its_density_up_to_the_rounding_of_a_rate() -> None:
    """0.8^3 = 0.512 is no half, 0.2^(1/2.32) = 0.4996 is one."""
    for density in (0.4951, 0.5, 0.5049):
        NM(2, 4).check("GMP", density)
    for density in (0.494, 0.506, 0.512):
        with pytest.raises(ValueError, match=r"keeps 0.5 of the weights and nothing else"):
            NM(2, 4).check("GMP", density)
    Weights().check("GMP", 0.506)
    score = torch.rand(1, 1000)
    kept = [int(NM(500, 1000).best(score, density).sum()) for density in (0.5, 0.504, 0.506)]
    assert kept == [500, 500, 506]


@pytest.mark.parametrize("structure", [Weights(), Units(), Blocks(2, 3)])
def test_the_asked_number_stays(structure: Structure) -> None:
    scores = {"a": torch.rand(6, 6), "b": torch.rand(12, 6)}
    found = masks(scores, 0.5, Global(), structure)
    assert all(found[name].shape == scores[name].shape and found[name].dtype == torch.bool for name in scores)
    assert sum(int(mask.sum()) for mask in found.values()) == pytest.approx(54, abs=6)


def test_ties_give_the_first() -> None:
    assert top(torch.ones(2, 3), 4).tolist() == [[True, True, True], [True, False, False]]
    assert not top(torch.ones(3), 0).any()


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Blocks(0, 1)
    with pytest.raises(ValueError, match="at most m"):
        NM(5, 4)


@given(
    st.lists(st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 1e-45, 2.0, math.inf, math.nan]), max_size=12),
    st.integers(-1, 13),
)
def test_the_highest_are_those_of_a_stable_sort(values: list[float], keep: int) -> None:
    score = torch.tensor(values, dtype=torch.float32)
    want = torch.zeros(len(values), dtype=torch.bool)
    want[score.argsort(descending=True, stable=True)[: max(0, keep)]] = True
    assert torch.equal(top(score, keep), want)


@pytest.mark.parametrize("structure", [Units(), Blocks(1, 1), Blocks(4, 4)])
def test_erdos_renyi_goes_by_the_weights_and_not_by_the_pieces(structure: Structure) -> None:
    """By hand: density of a layer ~ (sum of its sizes) / (product), solved for the number of pieces; no layer is full here."""
    shapes = {"c1": (16, 4, 3, 3), "c2": (32, 16, 3, 3), "fc": (64, 512)}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    pieces = {name: structure.pieces(score).numel() for name, score in scores.items()}
    factor = 0.02 * sum(pieces.values()) / sum(raw[name] * pieces[name] for name in shapes)
    assert all(factor * value < 1 for value in raw.values())
    found = masks(scores, 0.02, ErdosRenyi(), structure)
    for name, mask in found.items():
        kept = int(structure.pieces(mask.float()).count_nonzero())
        assert kept == max(1, round(factor * raw[name] * pieces[name]))
