"""Sigmoid gates: the soft mask, the step it becomes, and the rule between rounds, against loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch

from paring.gates import SigmoidGate


def gate(s: list[float], beta: float = 1.0, *, s0: float = 0.0, rescale: bool = False) -> SigmoidGate:
    made = SigmoidGate((len(s),), s0=s0, rescale=rescale, dtype=torch.float64)
    made.s.data = torch.tensor(s, dtype=torch.float64)
    made.beta.fill_(beta)
    return made


@pytest.mark.parametrize(("beta", "rescale"), [(1.0, False), (7.0, True), (200.0, False)])
def test_soft_mask_and_its_slope(beta: float, rescale: bool) -> None:
    values = [-0.4, -1e-3, 0.0, 0.02, 0.5]
    one = gate(values, beta, s0=-0.1, rescale=rescale)
    factor = 1 / (1 / (1 + math.exp(0.1))) if rescale else 1.0
    soft = [1 / (1 + math.exp(-beta * s)) for s in values]
    assert one().tolist() == pytest.approx([factor * m for m in soft], abs=1e-12)
    assert one.prob_open().tolist() == pytest.approx(soft, abs=1e-12)
    one().sum().backward()
    assert one.s.grad is not None
    assert one.s.grad.tolist() == pytest.approx([factor * beta * m * (1 - m) for m in soft], abs=1e-10)


def test_the_step_is_what_eval_mode_shows() -> None:
    one = gate([-1e-9, 0.0, 1e-9, 3.0], 5.0, s0=0.1, rescale=True)
    factor = 1 + math.exp(-0.1)
    assert one.support().tolist() == [False, False, True, True]  # H(0) = 0
    assert one.value().tolist() == [0.0, 0.0, factor, factor]
    assert torch.equal(one.eval()(), one.value())
    weight = torch.randn(4, dtype=torch.float64)
    assert torch.equal(one.fold(weight), one.see(weight))


def test_the_rule_between_rounds_uses_the_temperature_of_the_end() -> None:
    values, s0 = [-0.5, -1e-3, 0.0, 1e-3, 0.4], 0.05
    one = gate(values, 200.0, s0=s0)
    one.again(s0)
    assert one.s.tolist() == pytest.approx([min(200.0 * s, s0) for s in values])
    assert one.s.tolist()[0] == pytest.approx(-100.0), "what is clearly closed stays closed"


def test_choose_moves_only_what_is_on_the_wrong_side() -> None:
    one = gate([-0.3, -0.1, 0.0, 0.0, 0.2, 0.4])
    wanted = torch.tensor([False, True, True, False, False, True])
    one.choose(wanted)
    assert torch.equal(one.support(), wanted)
    assert one.s.tolist()[0] == -0.3
    assert one.s.tolist()[5] == 0.4
    assert one.s.detach().abs().max() <= 0.4


def test_a_fixed_gate_is_a_mask_that_does_not_move() -> None:
    one = gate([-0.2, 0.3], 3.0)
    assert not bool(one.permanently_closed().any())
    one.freeze()
    shown = one.train()()
    assert shown.tolist() == [0.0, 1.0]
    shown.sum().backward()
    assert one.s.grad is not None
    assert one.s.grad.tolist() == [0.0, 0.0], "there is a gradient, and it is zero"
    one.rest()
    assert one.s.grad is None
    assert one.frozen
    assert one.permanently_closed().tolist() == [True, False]
    assert one.prob_open().tolist() == [0.0, 1.0]
    copy_ = gate([0.1, 0.1])
    copy_.load_state_dict(one.state_dict())
    assert copy_.frozen
    assert float(copy_.beta) == 3.0
