"""Shrink as a method: its settings, retirement, and what a run remembers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import gates
from paring.gates import StochasticGate
from paring.gates.relax import HardConcrete
from paring.testing import difference, same_state

pytestmark = [BY_HAND, CUT_SHORT]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def attached(*methods: pr.Method, **clock: int) -> tuple[nn.Sequential, pr.Run, torch.optim.Optimizer]:
    module = net()
    run = pr.attach(module, pr.Stack(*methods), torch.randn(2, 8), **clock)
    return module, run, torch.optim.Adam(run.parameter_groups(lr=1e-2))


def steps(module: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        x = torch.randn(16, 8)
        opt.zero_grad()
        (F.cross_entropy(module(x), x[:, :3].argmax(1)) + run.penalty()).backward()
        run.step(opt)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"every": 0}, "must be positive"),
        ({"every": "soon"}, "give optimizer steps"),
        ({"every": "-1ep"}, "must be positive"),
        ({"patience": "nanep"}, "must be positive"),
        ({"multiple_of": 0}, "at least 1"),
        ({"multiple_of": 2.5}, "at least 1"),
        ({"saving": 1.0}, r"must lie in \[0, 1\)"),
        ({"retire": -0.1}, r"must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pr.Shrink(**change)


def test_epochs_need_their_length() -> None:
    module = net()
    with pytest.raises(ValueError, match="epoch_steps"):
        pr.attach(module, pr.Stack(pr.L0(), pr.Shrink()), torch.randn(2, 8))
    assert type(module[0]) is nn.Linear
    pr.attach(module, pr.Stack(pr.L0(), pr.Shrink()), torch.randn(2, 8), epoch_steps=10)


def test_it_belongs_behind_the_method_with_the_gates() -> None:
    for method in (pr.Shrink(every=1), pr.Stack(pr.Shrink(every=1), pr.L0())):
        module = net()
        with pytest.raises(ValueError, match=r"Stack\(L0\(...\), Shrink\(...\)\)"):
            pr.attach(module, method, torch.randn(2, 8))


def test_when_it_looks() -> None:
    shrink = pr.Shrink(every="0.5ep", multiple_of=4, saving=0.2, measure=False)
    module = net()
    found = [shrink.removal(module, pr.core.Clock(step=step, epoch_steps=6)) for step in range(1, 7)]
    assert [removal is not None for removal in found] == [False, False, True, False, False, True]
    assert found[2] == pr.core.Removal(4, 0.2, False)


def test_retirement_that_cannot_happen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"P\(open\) never falls below 0.047"):
        attached(pr.L0(), pr.Shrink(every=1, retire=0.04, patience=1))
    attached(pr.L0(gate=HardConcrete(clamp=None)), pr.Shrink(every=1, retire=0.04, patience=1))
    attached(pr.L0(), pr.Shrink(every=1, retire=0.06, patience=1))


def test_a_gate_retires_after_its_patience_and_never_opens_again() -> None:
    gate = StochasticGate(HardConcrete(), (4,))
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-4.5, -2.5, -4.5, 2.0]))
    gate.retire(0.1, 10, 20)
    assert not gate.permanently_closed().any()  # retirement is off
    gate.may_retire()
    gate.retire(0.1, 10, 20)
    assert not gate.permanently_closed().any()
    gate.log_alpha.data[2] = 0.0
    gate.retire(0.1, 10, 20)
    assert gate.permanently_closed().tolist() == [True, False, False, False]
    gate.log_alpha.data[:] = 4.0
    gate.retire(0.1, 10, 20)
    for seen in (gate.value(), gate(), gate.prob_open(), gate.eval()()):
        assert seen[0] == 0
        assert (seen[1:] > 0).all()
    again = StochasticGate(HardConcrete(), (4,))
    again.may_retire()
    again.load_state_dict(gate.state_dict())
    assert torch.equal(again.permanently_closed(), gate.permanently_closed())
    assert torch.equal(again.get_buffer("quiet"), gate.get_buffer("quiet"))


def test_the_last_one_does_not_retire() -> None:
    gate = StochasticGate(HardConcrete(), (3,))
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-4.5, -4.2, -4.5]))
    gate.may_retire()
    gate.retire(0.2, 5, 5)
    assert gate.permanently_closed().tolist() == [True, False, True]


def test_retired_units_go_and_the_function_stays() -> None:
    module, run, opt = attached(
        pr.L0(price=1e-3, gate_lr=10.0, at="units"),
        pr.Shrink(every=10, multiple_of=1, saving=0.05, measure=False, retire=0.15, patience=10),
        steps=200,
        epoch_steps=10,
    )
    before = None
    for _ in range(20):
        steps(module, run, opt, 9)
        before = copy.deepcopy(module)
        count = len(run.shrinks)
        steps(module, run, opt, 1)
        if len(run.shrinks) > count:
            break
    assert run.shrinks[-1]["done"]
    small = {name: p.shape for name, p in module.named_parameters()}
    assert before is not None
    assert small != {name: p.shape for name, p in before.named_parameters()}
    gated = copy.deepcopy(module)
    assert difference(run.finish(), gated, torch.randn(40, 8)) < 1e-5
    steps(module, run, opt, 20)


def test_gates_see_the_same_noise_after_a_cut() -> None:
    torch.manual_seed(0)
    gate, whole = StochasticGate(HardConcrete(), (6,), spread=1.0), StochasticGate(HardConcrete(), (6,), spread=1.0)
    whole.load_state_dict(gate.state_dict())
    for kept in ([0, 2, 3, 5], [1, 3]):  # the second cut counts what the first one left
        index = torch.tensor(kept)
        before = gate.shape
        gate.log_alpha = nn.Parameter(gate.log_alpha.detach()[index])
        gate.note_cut(before, {0: index})
        left = gate.part(torch.arange(6))
        torch.manual_seed(3)
        wide = whole()
        torch.manual_seed(3)
        assert torch.equal(gate(), wide[left])
        spread = gate.whole(gate.prob_open())
        assert torch.equal(spread[left], gate.prob_open())
        assert int((spread == 0).sum()) == 6 - len(left)
    assert left.tolist() == [2, 5]
    assert gate.dense_shape == (6,)


def test_a_state_is_loaded_into_a_fresh_network_only_forwards() -> None:
    method = (pr.L0(at="units"), pr.Shrink(every=2, multiple_of=1, saving=0.01, measure=False))

    def settle(module: nn.Module, width: int) -> None:
        for _, _, gate in gates(module):
            assert isinstance(gate, StochasticGate)
            gate.log_alpha.data[width:] = -5.0
            gate.freeze()

    module, run, opt = attached(*method)
    steps(module, run, opt, 1)
    early = copy.deepcopy(run.state_dict())
    settle(module, 10)
    steps(module, run, opt, 3)
    assert run.shrinks[0]["widths"] == {"0": 10, "2": 10}
    late = copy.deepcopy((run.state_dict(), module.state_dict(), opt.state_dict()))
    with pytest.raises(ValueError, match="the network has shrunk further than this state"):
        run.load_state_dict(early)
    fresh, again, its = attached(*method)
    again.load_state_dict(late[0])
    fresh.load_state_dict(late[1])
    its.load_state_dict(late[2])
    torch.manual_seed(5)
    steps(module, run, opt, 5)
    torch.manual_seed(5)
    steps(fresh, again, its, 5)
    assert same_state(module.state_dict(), fresh.state_dict())
    assert same_state(run.state_dict(), again.state_dict())
    assert float(again.cost().parameters) == sum(p.numel() for p in net().parameters())
