"""Convolutions and linear layers of bits beside torch's own, over random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paring.bits import backend
from paring.bits.backend import kernels
from paring.bits.check import as_bits
from paring.bits.contract import BitLayer, Window, binary, scales
from paring.bits.edges import Chain, Edges, code_of, find
from paring.bits.words import packed
from paring.hard import Sign, Staircase
from tests.reference.bits import contraction, lively, popcount_contraction, signs

UNITS = {"sign": 0, "2 bits": 3, "4 steps": 4}


def unit_of(name: str) -> nn.Module:
    return Sign() if name == "sign" else Staircase(UNITS[name])


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor, str, str]:
    """A convolution, values of a unit in front of it, the unit's name and that of the unit behind it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = (groups * draw(st.sampled_from([1, 5, 31, 64, 65])) for _ in range(2))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride, dilation = ((draw(st.integers(1, 3)), draw(st.integers(1, 2))) for _ in range(2))
    same = stride == (1, 1) and draw(st.booleans())
    padding = "same" if same else (draw(st.integers(0, 4)), draw(st.integers(0, 3)))
    shape = [draw(st.integers(0, 4)) + d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    with torch.no_grad():
        conv = nn.Conv2d(
            channels, filters, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())
        ).requires_grad_(False)
        before = draw(st.sampled_from(list(UNITS)))
        x = unit_of(before)(torch.randn(draw(st.integers(1, 3)), channels, *shape))
    return conv, x, before, draw(st.sampled_from(list(UNITS)))


def layer_and_edges(
    module: nn.Conv2d | nn.Linear, norm: nn.Module, before: nn.Module, after: nn.Module
) -> tuple[BitLayer, Edges]:
    code, flat = code_of(before), isinstance(module, nn.Linear)
    assert code is not None
    weight = module.weight.detach() if not flat else module.weight.detach()[:, :, None, None]
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach()
    factor = scales(weight).double() * code.size
    ends = find(
        Chain([norm, after], len(weight), flat),
        lambda n: (factor * n + bias.double()).float(),
        weight[0].numel() * code.planes,
    )
    window = Window((1, 1)) if isinstance(module, nn.Linear) else Window.of(module)
    return BitLayer(weight, module.bias, window, code, ends, flat), ends


@settings(max_examples=80)
@given(cases())
def test_signs_equal_those_of_torch_bit_for_bit(case: tuple[nn.Conv2d, Tensor, str, str]) -> None:
    conv, x, before, after = case
    norm = nn.BatchNorm2d(conv.out_channels)
    lively(nn.Sequential(conv, norm), dyadic=True, first=0, last=0)
    front, back = unit_of(before), unit_of(after)
    layer, _ = layer_and_edges(conv, norm, front, back)
    found = layer(as_bits(x, layer.code))
    with torch.no_grad():  # sums of ±1 and eighths are exact in float32; those of thirds are not
        summed = conv(x) if before == "sign" else contraction(conv, x, UNITS[before])
        expected = back(norm(summed))
    code = code_of(back)
    assert code is not None
    assert torch.equal(found, as_bits(expected, code))


@given(cases(), st.integers(0, 2**31))
def test_scales_and_any_bias_round_once(case: tuple[nn.Conv2d, Tensor, str, str], seed: int) -> None:
    conv, x, before, after = case
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(conv.out_channels)
    lively(nn.Sequential(conv, norm), scale=True, first=0, last=0)
    conv.weight[0] = 0
    front, back = unit_of(before), unit_of(after)
    layer, _ = layer_and_edges(conv, norm, front, back)
    bits = as_bits(x, layer.code)
    exact = contraction(conv, x, UNITS[before])
    code = code_of(back)
    assert code is not None
    with torch.no_grad():
        assert torch.equal(layer(bits), as_bits(back(norm(exact)), code))
        floats = BitLayer(conv.weight, conv.bias, Window.of(conv), layer.code, None, False)(bits)
        assert torch.equal(floats, exact)
        assert float((floats - conv(x)).abs().max()) <= 1e-4 * max(1.0, float(exact.abs().max()))


@given(st.sampled_from([1, 63, 64, 130]), st.sampled_from([1, 10, 64, 200]), st.integers(0, 50), st.integers(0, 2**31))
def test_linear_layers(inputs: int, outputs: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    linear, norm = nn.Linear(inputs, outputs).requires_grad_(False), nn.BatchNorm1d(outputs)
    lively(nn.Sequential(linear, norm), dyadic=True, first=0, last=0)
    x = signs(rows, inputs)
    layer, _ = layer_and_edges(linear, norm, Sign(), Sign())
    found = layer(as_bits(x, layer.code))
    assert torch.equal(found, packed(norm(linear(x)) > 0)[:, None, None, None])
    floats = BitLayer(linear.weight[:, :, None, None], linear.bias, Window((1, 1)), layer.code, None, True)
    assert torch.equal(floats(as_bits(x, layer.code)), linear(x))


def test_counts_of_the_tile_by_plain_python() -> None:
    run, size = kernels(), 5
    for rows in (1, 2, 3, 4, 7):
        x = torch.randint(-(2**63), 2**63 - 1, (rows, size))
        lines = torch.randint(-(2**63), 2**63 - 1, (64, size))
        counts = torch.zeros(rows * 64, dtype=torch.int32)
        words = lines.T.contiguous().view(-1).numpy()
        run.count_rows(x.view(-1).numpy(), 0, size, 0, 1, words, 0, size, counts.numpy(), rows)
        unsigned = [[[value % 2**64 for value in line] for line in given.tolist()] for given in (lines, x)]
        assert counts.view(rows, 64).tolist() == popcount_contraction(*unsigned)


def test_threads_share_rows_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "LEAST_WORK", 1)
    for images, size in ((1, 1), (5, 9)):
        conv = nn.Conv2d(70, 300, min(3, size), groups=1).requires_grad_(False)
        conv.weight.copy_(signs(*conv.weight.shape))
        x = signs(images, 70, size, size)
        layer = BitLayer(conv.weight, conv.bias, Window.of(conv), code_of(Sign()), None, False)  # type: ignore[arg-type]
        bits = as_bits(x, layer.code)
        torch.set_num_threads(1)
        alone = layer(bits)
        torch.set_num_threads(3)
        assert torch.equal(layer(bits), alone)
        assert torch.allclose(alone, conv(x), atol=1e-4)


def test_tables_follow_new_weights_and_sizes() -> None:
    def layer(seed: int) -> BitLayer:
        torch.manual_seed(seed)
        norm, conv = nn.BatchNorm2d(6), nn.Conv2d(5, 6, 3, padding=1)
        lively(nn.Sequential(conv, norm), first=0, last=0)
        return layer_and_edges(conv, norm, Sign(), Sign())[0]

    one, other = layer(0), layer(1)
    for size in (4, 7):
        bits = as_bits(signs(2, 5, size, size), one.code)
        before, expected = one(bits), other(bits)
        assert not torch.equal(before, expected)
        kept = {name: value.clone() for name, value in one.state_dict().items()}
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(bits), expected)
        one.load_state_dict(kept)
        assert torch.equal(one(bits), before)


def test_refusals() -> None:
    layer = BitLayer(signs(4, 70, 3, 3), None, Window((3, 3)), code_of(Sign()), None, False)  # type: ignore[arg-type]
    right = as_bits(signs(1, 70, 4, 4), layer.code)
    assert layer(right).shape == (1, 4, 2, 2)
    with pytest.raises(TypeError, match="expected bits"):
        layer(signs(1, 70, 4, 4))
    with pytest.raises(TypeError, match="expected bits"):
        layer(right.expand(2, -1, -1, -1, -1))
    with pytest.raises(ValueError, match="1 planes of 70 channels"):
        layer(right[..., :1].contiguous())
    with pytest.raises(ValueError, match="smaller than the windows"):
        layer(right[:, :2].contiguous())


def test_what_counts_as_binary() -> None:
    weight = signs(3, 4) * torch.tensor([[0.5], [2.0], [0.0]])
    assert binary(weight)
    assert scales(weight).tolist() == [0.5, 2.0, 0.0]
    weight[0, 1] *= 1.0000001
    assert not binary(weight)
    assert not binary(torch.tensor([[1.0, 0.0, -1.0]])), "ternary is not binary"
