"""Soft thresholds against loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch

from paring.gates import SoftThresholdGate

S = -1.5
T = 1 / (1 + math.exp(-S))
VALUES = [-0.9, -T, -0.05, 0.0, 0.1, T + 1e-9, 0.7]


def naive(w: float) -> float:
    return math.copysign(max(abs(w) - T, 0.0), w)


def test_weights_and_their_gradients() -> None:
    weight = torch.tensor(VALUES, dtype=torch.float64, requires_grad=True)
    gate = SoftThresholdGate(weight, s=S)
    seen = gate.see(weight)
    assert seen.tolist() == pytest.approx([naive(w) for w in VALUES], abs=1e-12)
    factors = torch.arange(1.0, 8.0, dtype=torch.float64)
    (seen * factors).sum().backward()
    is_open = [abs(w) > T for w in VALUES]
    assert weight.grad is not None
    assert weight.grad.tolist() == [float(f) if o else 0.0 for f, o in zip(factors, is_open, strict=True)]
    slope = (
        -sum(float(f) * math.copysign(1, w) for f, w, o in zip(factors, VALUES, is_open, strict=True) if o)
        * T
        * (1 - T)
    )
    assert gate.s.grad is not None
    assert float(gate.s.grad) == pytest.approx(slope, abs=1e-10)


def test_all_answers_agree_with_what_is_folded() -> None:
    weight = torch.randn(20, 5, dtype=torch.float64)
    gate = SoftThresholdGate(weight, s=S)
    folded = gate.fold(weight)
    assert torch.equal(folded != 0, gate.support())
    assert torch.equal(gate.support().double(), gate.prob_open())
    assert float((weight * gate.value() - folded).detach().abs().max()) < 1e-12
    assert torch.equal(gate.eval()(), gate.value())
    gate.read(torch.zeros(20, 5))
    assert not bool(gate.support().any())
    assert bool((gate.value() == 0).all())


def test_the_weight_it_has_read_is_part_of_its_state() -> None:
    gate = SoftThresholdGate(torch.randn(4, 3), s=S)
    other = SoftThresholdGate(torch.randn(4, 3), s=0.0)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.support(), gate.support())
