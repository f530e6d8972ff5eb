"""Layers without zeros beside the slow way and torch's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paring.deployment import DeployError
from paring.deployment.packed_rows import PackedRows
from paring.deployment.sparse_layers import SparseConv, SparseLayer, SparseLinear
from paring.deployment.torch_sparse import TorchSparseLinear, block_of, is_two_four
from tests.reference import sparse as slow

SHARES = st.sampled_from([0.0, 0.05, 0.5, 1.0])


def thinned(layer: nn.Module, share: float) -> nn.Module:
    """The layer with this share of its weights, the others zero; bound to answers."""
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < share)
    return layer.eval().requires_grad_(False)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0, 1, 2, 7, 8, 9, 33, 70]),
    SHARES,
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_linear(inputs: int, outputs: int, examples: int, share: float, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = thinned(nn.Linear(inputs, outputs, bias), share)
    x = torch.randn(examples, inputs)
    expected = slow.linear(layer, x)
    close(SparseLinear(layer)(x), expected)
    close(TorchSparseLinear(layer)(x), expected)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 5), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("form", [SparseLinear, TorchSparseLinear])
def test_linear_takes_any_dimensions_in_front(lead: tuple[int, ...], form: type[nn.Module]) -> None:
    layer = thinned(nn.Linear(6, 4), 0.4)
    x = torch.randn(*lead, 6)
    close(form(layer)(input=x), layer(x))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv1d | nn.Conv2d, Tensor]:
    dims = draw(st.integers(1, 2))
    few = st.lists(st.integers(1, 3), min_size=dims, max_size=dims)
    torch.manual_seed(draw(st.integers(0, 99)))
    groups, stride = draw(st.integers(1, 3)), draw(few)
    padding = draw(st.lists(st.integers(0, 4), min_size=dims, max_size=dims))
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1](
        groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)), draw(few), stride,
        "same" if max(stride) == 1 and draw(st.booleans()) else padding, draw(few), groups, draw(st.booleans()),
    )  # fmt: skip
    sizes = [draw(st.integers(7, 9) | st.sampled_from([17, 33])) for _ in range(dims)]
    return thinned(layer, draw(SHARES)), torch.randn(draw(st.sampled_from([0, 1, 2, 5])), layer.in_channels, *sizes)


@given(convolutions())
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution(case: tuple[nn.Conv1d | nn.Conv2d, Tensor]) -> None:
    layer, x = case
    found = SparseConv(layer)(x)
    close(found, layer(x))
    if found.numel() * layer.weight[0].numel() < 1000:
        around = layer._reversed_padding_repeated_twice
        close(found, slow.convolution(layer, x, tuple(zip(around[::2][::-1], around[1::2][::-1], strict=True))))


def test_convolution_takes_one_image_and_other_sizes() -> None:
    layer = thinned(nn.Conv2d(3, 4, 3, padding=1), 0.3)
    sparse = SparseConv(layer)
    for shape in ((3, 9, 12), (2, 3, 9, 12), (2, 3, 5, 4), (2, 3, 9, 12), (1, 3, 1, 40)):
        x = torch.randn(shape)
        close(sparse(x), layer(x))
    with pytest.raises(ValueError, match="smaller than the filter"):
        SparseConv(thinned(nn.Conv2d(3, 4, 3), 0.3))(torch.randn(1, 3, 2, 9))
    with pytest.raises(ValueError, match="expected 3 channels"):
        sparse(torch.randn(2, 4, 9, 9))


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (40, 3, 5, 5)])
def test_threads_share_images_or_outputs(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.bits.backend.LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    layer, x = thinned(nn.Conv2d(3, 8, 3, padding=1), 0.5), torch.randn(shape)
    close(SparseConv(layer)(x), layer(x))
    full = thinned(nn.Linear(40, 50), 0.5)
    close(SparseLinear(full)(x.view(-1, 40)[:30]), full(x.view(-1, 40)[:30]))
    close(SparseLinear(full)(x.view(-1, 40)[0]), full(x.view(-1, 40)[0]))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), SHARES)
def test_packed_rows_give_the_weight_back(groups: int, outputs: int, inputs: int, share: float) -> None:
    weight = torch.randn(groups * outputs, inputs, 2, 3) * (torch.rand(groups * outputs, inputs, 2, 3) < share)
    packed = PackedRows.of(weight, None, groups)
    assert torch.equal(packed.dense(groups), weight)
    assert packed.taps.dtype == np.uint16


def test_many_columns_take_four_bytes() -> None:
    weight = torch.zeros(2, 70_000)
    weight[1, 69_999] = 2.0
    packed = PackedRows.of(weight, torch.ones(2))
    assert packed.taps.dtype == np.uint32
    assert torch.equal(packed.dense(), weight)
    layer = nn.Linear(70_000, 2).requires_grad_(False)
    layer.weight.copy_(weight)
    x = torch.randn(9, 70_000)
    close(SparseLinear(layer)(x), layer(x))
    close(SparseLinear(layer)(x[:1]), layer(x[:1]))


@pytest.mark.parametrize("form", [SparseLinear, TorchSparseLinear])
def test_what_layers_for_answers_refuse(form: type[nn.Module]) -> None:
    layer = thinned(nn.Linear(6, 4), 0.4)
    sparse, x = form(layer), torch.randn(2, 6)
    for refused in (sparse.train, sparse.state_dict, lambda: sparse.__reduce_ex__(4)):
        with pytest.raises(DeployError, match="deploy that again"):
            refused()
    with pytest.raises(DeployError, match="no gradient"):
        sparse(x.clone().requires_grad_())
    with torch.no_grad():
        close(sparse(x.clone().requires_grad_()), layer(x))
    assert sparse.eval() is sparse
    assert torch.equal(sparse.weight, layer.weight)
    close(copy.deepcopy(sparse)(x), layer(x))


def test_numbers_of_another_type() -> None:
    sparse: SparseLayer = SparseLinear(thinned(nn.Linear(6, 4), 0.4))
    with pytest.raises(TypeError, match=r"float32 on the CPU, not torch\.float64"):
        sparse(torch.randn(2, 6).double())
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 6\)"):
        sparse(torch.randn(2, 5))


def test_blocks_and_two_in_four() -> None:
    weight = torch.zeros(32, 64)
    weight[8:16, 16:24] = 1.0
    assert block_of(weight) == 8
    weight[0, 0] = 1.0
    assert block_of(weight) == 4
    assert block_of(torch.eye(32)) == 0
    layer = nn.Linear(64, 32).requires_grad_(False)
    layer.weight.mul_(weight)
    close(TorchSparseLinear(layer, 4)(torch.ones(3, 64)), layer(torch.ones(3, 64)))
    assert is_two_four(torch.tensor([[0.0, 1, 0, 2, 0, 0, 3, 0]]))
    assert not is_two_four(torch.tensor([[0.0, 1, 1, 2, 0, 0, 3, 0]]))
    assert not is_two_four(torch.ones(3, 6))
