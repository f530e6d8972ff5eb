"""The three regularisers against plain loops, their special cases and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.gates.relax import HardConcrete, expected_l0, expected_l2, spike_and_slab
from reference import relax as naive

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(p=probabilities, seed=st.integers(0, 99))
def test_twins(p: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chance = torch.tensor(p, dtype=torch.float64)
    weights = torch.randn(len(p), 5, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 9, (len(p),), generator=generator)
    other = torch.rand(len(p), generator=generator, dtype=torch.float64)
    assert expected_l0(chance, size).item() == pytest.approx(naive.expected_l0(p, size.tolist()))
    assert expected_l0(chance, 7).item() == pytest.approx(naive.expected_l0(p, [7.0] * len(p)))
    assert expected_l2(chance, weights.square().sum(1)).item() == pytest.approx(naive.expected_l2(p, weights.tolist()))
    assert spike_and_slab(other, chance, size).item() == pytest.approx(
        naive.spike_and_slab(other.tolist(), p, size.tolist())
    )


def test_by_hand() -> None:
    chance = torch.tensor([0.25, 0.5])
    assert expected_l0(chance, torch.tensor([4, 10])).item() == 6.0
    assert expected_l2(chance, torch.tensor([8.0, 2.0])).item() == 1.5
    assert spike_and_slab(torch.tensor([0.1, 0.2]), chance, 2.0).item() == pytest.approx(1.8)


def test_expected_l0_is_the_expectation() -> None:
    """Count the nonzero weights of sampled networks: two groups of 3 and 40 weights."""
    gate, a, size = HardConcrete(), torch.tensor([-1.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 40.0])
    u = (torch.arange(100_000, dtype=torch.float64)[:, None] + 0.5) / 100_000
    counted = ((gate.sample(a, u) != 0) * size).sum(1).mean()
    assert expected_l0(gate.prob_open(a), size).item() == pytest.approx(counted.item(), abs=1e-3)


def test_unit_cost_per_open_weight() -> None:
    """With a constant cost per open weight and no gate entropy, spike and slab is the L0 penalty (eq. 21 to 22)."""
    gate, a, size, price = HardConcrete(), torch.linspace(-3, 3, 9), torch.arange(1.0, 10.0), 0.02
    chance, kl = gate.prob_open(a), gate.kl(a, 0.5)
    l0 = price * expected_l0(chance, size)
    assert torch.allclose(spike_and_slab(torch.zeros(9), chance, price * size), l0)
    assert torch.allclose(spike_and_slab(kl, chance, price * size), l0 + kl.sum())
    assert spike_and_slab(kl, chance, price * size) > l0


def test_gradients_reach_both_unless_detached() -> None:
    a = torch.tensor([-1.0, 2.0], requires_grad=True)
    w = torch.tensor([[1.0, 2.0], [3.0, -4.0]], requires_grad=True)
    gate = HardConcrete()
    squares = w.square().sum(1)
    to_a, to_w = torch.autograd.grad(expected_l2(gate.prob_open(a), squares), [a, w], retain_graph=True)
    p = gate.prob_open(a).detach()
    assert torch.allclose(to_w, p[:, None] * w)
    assert torch.allclose(to_a, squares / 2 * p * (1 - p))
    detached = expected_l2(gate.prob_open(a), squares, detach=True)
    only_w = torch.autograd.grad(detached, [a, w], allow_unused=True)
    assert only_w[0] is None
    assert only_w[1] is not None
    assert torch.allclose(only_w[1], to_w)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_sums_do_not_overflow(dtype: torch.dtype) -> None:
    chance = torch.full((1000,), 0.5, dtype=dtype)
    total = expected_l0(chance, torch.full((1000,), 30_000.0, dtype=dtype))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(1.5e7, rel=1e-2)
    assert expected_l2(chance, torch.full((1000,), 3e4, dtype=dtype)).item() == pytest.approx(7.5e6, rel=1e-2)


def test_shapes_must_agree() -> None:
    chance = torch.ones(3)
    with pytest.raises(ValueError, match=r"size has shape \(3, 1\) but prob has shape \(3,\)"):
        expected_l0(chance, torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"weight_sq_sum has shape \(\)"):
        expected_l2(chance, torch.tensor(2.0))
    with pytest.raises(ValueError, match=r"gate_kl has shape \(2,\)"):
        spike_and_slab(torch.zeros(2), chance, 1.0)
    with pytest.raises(ValueError, match="slab_kl"):
        spike_and_slab(torch.zeros(3), chance, torch.zeros(4))
