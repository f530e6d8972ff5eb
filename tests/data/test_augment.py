"""Augmentation against a loop over the images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paring.data import Augment


def one_by_one(x: Tensor, crop: int, flip: bool, seed: int) -> Tensor:
    """The same draws, used image by image and pixel by pixel."""
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = x.shape
    down, right, mirror = torch.full((n,), crop), torch.full((n,), crop), torch.zeros(n, dtype=torch.int64)
    if crop:
        down = torch.randint(2 * crop + 1, (n, 1), generator=generator)[:, 0]
        right = torch.randint(2 * crop + 1, (n, 1), generator=generator)[:, 0]
    if flip:
        mirror = torch.randint(2, (n, 1), generator=generator)[:, 0]
    out = torch.zeros_like(x)
    for i in range(n):
        for row in range(height):
            for column in range(width):
                r = row + int(down[i]) - crop
                c = (width - 1 - column if mirror[i] else column) + int(right[i]) - crop
                if 0 <= r < height and 0 <= c < width:
                    out[i, :, row, column] = x[i, :, r, c]
    return out


@given(
    n=st.integers(0, 4),
    channels=st.integers(1, 3),
    height=st.integers(3, 6),
    width=st.integers(3, 6),
    crop=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(n: int, channels: int, height: int, width: int, crop: int, flip: bool, seed: int) -> None:
    x = torch.arange(1, n * channels * height * width + 1, dtype=torch.float64).reshape(n, channels, height, width)
    before = x.clone()
    got = Augment(crop, flip)(x, torch.Generator().manual_seed(seed))
    assert torch.equal(got, one_by_one(x, crop, flip, seed))
    assert torch.equal(x, before)
    assert got.dtype == x.dtype


def test_every_shift_and_mirror_happens_about_equally_often() -> None:
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 2], x[:, :, 2, 1] = 1, 2
    out = Augment(crop=1, flip=True)(x, torch.Generator().manual_seed(0))
    counts = (out == 1).flatten(1).int().argmax(1).bincount(minlength=25)
    places = torch.tensor([6, 7, 8, 11, 12, 13, 16, 17, 18])
    assert counts[places].sum() == 9000
    assert (counts[places] - 1000).abs().max() < 150
    right = (out == 2).flatten(1).int().argmax(1) > (out == 1).flatten(1).int().argmax(1)
    assert abs(right.sum().item() - 4500) < 240


def test_nothing_asked_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 4)
    state = torch.get_rng_state()
    assert Augment()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_decides() -> None:
    x, augment = torch.randn(16, 1, 8, 8), Augment(2, True)
    a, b, c = (augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.manual_seed(1)
    assert torch.equal(augment(x), a)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cpu_generator_gives_the_same_on_the_gpu() -> None:
    x, augment = torch.randn(16, 3, 8, 8), Augment(2, True)
    got = augment(x.cuda(), torch.Generator().manual_seed(1))
    assert got.is_cuda
    assert torch.equal(got.cpu(), augment(x, torch.Generator().manual_seed(1)))
    assert augment(x.cuda(), torch.Generator("cuda").manual_seed(1)).is_cuda


@pytest.mark.parametrize("crop", [-1, 0.5, True, "4", None])
def test_crops_that_are_none_are_refused(crop: object) -> None:
    with pytest.raises(ValueError, match="crop is a number of pixels"):
        Augment(crop)  # type: ignore[arg-type]


def test_other_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="True or False"):
        Augment(flip=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not a tensor of shape \(3, 8, 8\)"):
        Augment(1)(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="4x8 image"):
        Augment(4)(torch.zeros(1, 1, 4, 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augment().crop = 1  # type: ignore[misc]
    assert Augment(4, True) == Augment(4, True)
    assert len({Augment(4, True), Augment(4, True), Augment()}) == 2
