"""The verbs of `MaskGate`: what they close, what they tell, and that its fields are not set from outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paring.gates import MaskGate

T, F = True, False


def test_choose_opens_exactly_what_is_asked_and_close_only_closes() -> None:
    gate = MaskGate((4,))
    gate.choose(torch.tensor([1.0, 0.0, -2.0, 0.0]))
    assert gate.mask.tolist() == [T, F, T, F]
    gate.close(torch.tensor([T, T, F, F]))
    assert gate.mask.tolist() == [F, F, T, F]
    gate.choose(torch.tensor([T, T, F, F]))
    assert gate.mask.tolist() == [T, T, F, F]


def test_an_exchange_is_told_once() -> None:
    gate = MaskGate((4,))
    assert gate.take_fresh() is None
    gate.choose(torch.tensor([T, T, F, F]))
    gate.exchange(torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 2.0]), 0.5)
    assert gate.mask.tolist() == [T, F, F, T]
    fresh = gate.take_fresh()
    assert fresh is not None
    assert fresh.tolist() == [F, F, F, T]
    assert gate.take_fresh() is None


def test_what_was_set_aside_comes_back() -> None:
    gate, weight = MaskGate((3,)), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    gate.set_aside(weight)
    assert gate.aside is not None
    assert gate.aside.tolist() == [0.0] * 3
    gate.set_aside(weight, torch.tensor([T, F, T]))
    assert (weight.tolist(), gate.aside.tolist()) == ([1.0, 0.0, 3.0], [0.0, 2.0, 0.0])
    assert gate.latent(weight).tolist() == [1.0, 2.0, 3.0]
    gate.set_aside(weight, torch.tensor([F, T, T]))
    assert (weight.tolist(), gate.aside.tolist()) == ([0.0, 2.0, 3.0], [1.0, 0.0, 0.0])


def test_only_a_frozen_gate_is_settled_and_straight_through_reaches_what_is_closed() -> None:
    gate, weight = MaskGate((2,), factor=2.0), nn.Parameter(torch.tensor([1.0, 2.0]))
    gate.close(torch.tensor([T, F]))
    for through, wanted in ((F, [0.0, 2.0]), (T, [1.0, 1.0])):
        gate.let_through(through)
        assert gate.see(weight).tolist() == [0.0, 4.0]
        assert torch.autograd.grad(gate.see(weight).sum(), weight)[0].tolist() == wanted
    assert gate.permanently_closed().tolist() == [F, F]
    gate.freeze()
    assert gate.permanently_closed().tolist() == [T, F]
    other = MaskGate((2,))
    other.load_state_dict(gate.state_dict())
    assert (other.dense, other.fixed) == (T, T)
    gate.freeze(False)
    assert gate.permanently_closed().tolist() == [F, F]


@pytest.mark.parametrize("name", ["dense", "fixed", "factor", "input_group"])
def test_fields_are_not_set_from_outside(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(MaskGate((2,)), name, 1)
