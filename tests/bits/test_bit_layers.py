"""Bits of floats, floats of bits, and pooling of bits, beside torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paring.bits.bit_layers import BitPool, Decode, Encode
from paring.bits.check import as_bits
from paring.bits.edges import Chain, Code, code_of, intervals
from paring.hard import Sign, Staircase
from tests.reference.bits import lively


@given(
    st.sampled_from([1, 3, 63, 64, 65, 130]),
    st.sampled_from([(), (1, 1), (2, 5), (8, 8), (9, 13)]),
    st.integers(0, 3),
    st.sampled_from([0, 3]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_bits_of_floats_and_back(
    channels: int, size: tuple[int, ...], images: int, steps: int, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    unit = Staircase(steps) if steps else Sign()
    norm = nn.BatchNorm2d(channels) if size else nn.BatchNorm1d(channels)
    lively(norm)
    x = 10 * torch.randn(images, channels, *size)
    if last and size:
        x = x.contiguous(memory_format=torch.channels_last)
    code = code_of(unit)
    assert code is not None
    bits = Encode(*intervals(Chain([norm, unit], channels, not size)))(x)
    with torch.no_grad():
        expected = unit(norm(x))
    assert torch.equal(bits, as_bits(expected, code))
    values = Decode(code, channels, not size)(bits)
    assert values.shape == x.shape
    assert torch.equal(values, expected)


def test_a_nan_sets_no_bit_and_infinities_do() -> None:
    encode = Encode(*intervals(Chain([Sign()], 3, True)))
    assert encode(torch.tensor([[torch.nan, torch.inf, -torch.inf]])).item() == 0b010


@st.composite
def pools(draw: st.DrawFn) -> tuple[nn.MaxPool2d, list[int]]:
    """A pooling, and an image that it takes."""
    kernel, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (4, 4, 3)
    )  # of height and width
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [n + draw(st.integers(0, 6)) for n in least]
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans())), size


@given(pools(), st.integers(0, 2**31))
def test_pooling(case: tuple[nn.MaxPool2d, list[int]], seed: int) -> None:
    """max of x where bits rise with x is the union; of -x, where they fall, the intersection."""
    torch.manual_seed(seed)
    (pool, size), channels = case, 70
    falling = torch.rand(channels) > 0.5
    side = torch.where(falling, -1.0, 1.0).view(-1, 1, 1)
    x = torch.randn(2, channels, *size)
    unit = Staircase(3)
    code = code_of(unit)
    assert code is not None
    expected = as_bits(unit(side * pool(x)), code)
    assert torch.equal(BitPool(pool, falling, 3)(as_bits(unit(side * x), code)), expected)


def test_refusals() -> None:
    encode = Encode(torch.zeros(1, 4), torch.full((1, 4), torch.inf))
    assert encode(torch.ones(2, 4)).shape == (2, 1, 1, 1, 1)
    with pytest.raises(TypeError, match="float32"):
        encode(torch.ones(2, 4).double())
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        encode(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        encode(torch.ones(2, 4, 3))
    pool = BitPool(nn.MaxPool2d(3), torch.zeros(4, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="smaller than the windows"):
        pool(torch.zeros(1, 2, 2, 1, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="expected bits"):
        pool(torch.ones(1, 4, 3, 3))
    with pytest.raises(ValueError, match="1 planes of 4 channels"):
        Decode(Code(), 4, False)(torch.zeros(1, 2, 2, 3, 1, dtype=torch.int64))
