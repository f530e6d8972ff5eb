"""Binary weights: values, gradients against autograd of the formula, cuts, and what is left behind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from paring.core import put, release
from paring.gates import BinaryWeights, ScaleGate, is_binary
from paring.hard import STE, GradientRule, SaturatedSTE, SoftHinge

SHAPES = ((5, 7), (4, 3, 2, 2))


def weight_of(*shape: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight.view(-1)[0] = 0.0
    return weight


def slope(rule: GradientRule, weight: Tensor, gradient: Tensor) -> Tensor:
    return rule.descend(weight, gradient)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", [SaturatedSTE(), STE(), SoftHinge()], ids=repr)
def test_values_and_gradients_are_the_formulas(shape: tuple[int, ...], rule: GradientRule) -> None:
    weight = weight_of(*shape).requires_grad_()
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    signs = torch.where(weight > 0, 1.0, -1.0).double()
    plain = BinaryWeights(weight.detach(), mean=False, rule=rule)
    assert torch.equal(plain.see(weight), signs)
    (found,) = torch.autograd.grad(plain.see(weight), weight, grad)
    assert torch.allclose(found, slope(rule, weight.detach(), grad), rtol=0, atol=1e-12)

    mean = BinaryWeights(weight.detach(), rule=rule)
    each = tuple(range(1, weight.dim()))
    alpha = weight.detach().abs().mean(each, keepdim=True)
    assert torch.allclose(mean.see(weight), alpha * signs, rtol=0, atol=1e-12)
    (found,) = torch.autograd.grad(mean.see(weight), weight, grad)
    through = (grad * signs).sum(each, keepdim=True) * weight.detach().sign() / weight[0].numel()
    assert torch.allclose(found, through + slope(rule, weight.detach(), grad * alpha), rtol=0, atol=1e-12)


def test_zero_is_minus_one_and_nothing_ever_closes() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 1] = 0.3
    gate = BinaryWeights(weight, mean=False)
    assert gate.fold(weight).tolist() == [[-1, -1, -1], [-1, 1, -1]]
    assert bool(gate.support().all())
    assert not bool(gate.permanently_closed().any())
    assert bool((gate.prob_open() == 1).all())
    assert gate.value()[1, 1].item() == pytest.approx(1 / 0.3)
    assert BinaryWeights(weight).fold(weight)[0].tolist() == [0, 0, 0]  # a channel of zeros has no size


@pytest.mark.parametrize("mean", [False, True])
def test_what_release_leaves_is_binary(mean: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).double()
    for layer in (net[0], net[3]):
        put(layer, "weights", BinaryWeights(layer.weight, mean=mean))
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    before = net(x)
    release(net)
    assert torch.equal(net(x), before)
    assert is_binary(net[0].weight)
    assert is_binary(net[3].weight)
    if not mean:
        assert bool((net[0].weight.abs() == 1).all())
    assert not is_binary(torch.tensor([[1.0, 0.0]]))
    assert not is_binary(torch.tensor([[1.0, -2.0]]))
    assert is_binary(torch.tensor([[1.0, -1.0], [-0.5, 0.5]]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_leaves_the_other_weights_alone(shape: tuple[int, ...]) -> None:
    weight = weight_of(*shape)
    gate = BinaryWeights(weight)
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
    for kept, view in (
        ({1: columns}, weight[:, columns]),
        ({0: rows}, weight[rows][:, columns]),
    ):
        expected = gate.see(gate.weight)
        before = gate.shape
        for dim, keep in kept.items():
            expected = expected.index_select(dim, keep)
            gate.weight = gate.weight.index_select(dim, keep)
        gate.note_cut(before, kept)
        assert torch.equal(gate.weight, view)
        assert torch.allclose(gate.see(view), expected, rtol=0, atol=1e-12)
    moved = view * 1.5
    gate.read(moved)
    each = weight[0].numel()
    lost = weight[rows].abs().flatten(1).sum(1) - view.abs().flatten(1).sum(1)
    alpha = (moved.abs().flatten(1).sum(1) + lost) / each
    assert torch.allclose(gate.fold(moved).abs().flatten(1)[:, 0], alpha, rtol=0, atol=1e-12)


def test_copies_and_types() -> None:
    weight = weight_of(3, 4).float()
    gate = BinaryWeights(weight, rule=SoftHinge())
    for copy_ in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(copy_.see(weight), gate.see(weight))
        assert copy_.rule == gate.rule
    assert gate.see(weight).dtype == torch.float32
    assert gate.double().see(weight.double()).dtype == torch.float64
    assert "SoftHinge" in str(gate)


def test_unit_gates_beside_binary_weights_are_multiplied_after_the_sign() -> None:
    layer = nn.Linear(4, 3).double()
    put(layer, "weights", BinaryWeights(layer.weight, mean=False))
    scale = ScaleGate((3,), device=None, dtype=torch.float64)
    put(layer, "units", scale)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    scale.close(torch.tensor([False, True, False]))
    x = torch.randn(5, 4, dtype=torch.float64)
    before = layer(x)
    release(layer)
    assert float((layer(x) - before).detach().abs().max()) < 1e-12
    assert layer.weight.abs()[:, 0].tolist() == [0.5, 0.0, 2.0]
