"""The noise of concrete dropout against the paper's formula, and that it is never a closed gate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from paring.core import put
from paring.gates import DropoutGate


def test_one_soft_drop_per_example_and_input() -> None:
    gate = DropoutGate(3, p=0.2, temperature=0.1, dtype=torch.float64)
    torch.manual_seed(3)
    shown = gate.train()(4)
    torch.manual_seed(3)
    u = torch.rand(4, 3, dtype=torch.float64)
    for i in range(4):
        for k in range(3):
            drop = math.log(0.2 / 0.8) + math.log(float(u[i, k]) / (1 - float(u[i, k])))
            kept = 1 - 1 / (1 + math.exp(-drop / 0.1))
            assert shown[i, k].item() == pytest.approx(kept / 0.8, abs=1e-10)


def test_the_gradient_of_p_goes_through_drop_and_scale() -> None:
    gate = DropoutGate(2, p=0.3, dtype=torch.float64)

    def total(logit: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        gate.logit.data = logit.detach()
        return (gate(50) * torch.arange(1.0, 3.0)).sum()

    start = gate.logit.detach().clone()
    total(start).backward()
    step = 1e-6
    numeric = (total(start + step).item() - total(start - step).item()) / (2 * step)
    assert gate.logit.grad is not None
    assert float(gate.logit.grad) == pytest.approx(numeric, rel=1e-5)


def test_layers_drop_features_or_whole_channels() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False, groups=3)
    nn.init.ones_(conv.weight)
    put(conv, "inputs", DropoutGate(3, p=0.5))
    out = conv.train()(torch.ones(6, 3, 4, 4))
    assert bool((out == out[:, :, :1, :1]).all()), "one drop for a whole channel of an example"
    assert out[:, :, 0, 0].std().item() > 0.1
    assert torch.equal(conv.eval()(torch.ones(1, 3, 4, 4)), torch.ones(1, 3, 4, 4))


def test_nothing_is_ever_closed() -> None:
    gate = DropoutGate(5, p=0.99)
    assert bool(gate.support().all())
    assert gate.value().tolist() == [1.0] * 5 == gate.prob_open().tolist()
    assert not bool(gate.permanently_closed().any())
    assert bool((gate.train()(1000) >= 0).all())
    assert gate.entropy().item() == pytest.approx(-(0.99 * math.log(0.99) + 0.01 * math.log(0.01)), rel=1e-4)


def test_a_cut_gate_draws_as_before_the_cut() -> None:
    gate = DropoutGate(4, p=0.4)
    torch.manual_seed(1)
    before = gate.train()(2)
    gate.note_cut(gate.shape, {0: torch.tensor([0, 3])})
    torch.manual_seed(1)
    assert torch.equal(gate(2), before[:, [0, 3]])
    assert gate.shape == (2,)
    assert gate.dense_shape == (4,)
    assert gate.value().shape == (2,)
