"""What L0 says of what it was asked: a price of nothing, an unknown length, a budget that closes much at once or is missed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import attached, gates
from paring.methods import SparseVD
from paring.removal import Report
from paring.run.missed import Asked

X = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))


def chain(width: int = 100) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (pr.L0(), "L0(price=0) asks for nothing to go"),
        (pr.L0(price=pr.Price(0.0, layers={"0": 0.0}), l2=1e-3, detach_l2=True), "L0(price=0) asks for nothing to go"),
        (SparseVD(rate=0, warmup=0), "SparseVD(rate=0) asks for nothing to go"),
        (pr.L0(price=1e-3, hold=0.5), "L0 holds its gates for the last 50% of training, whose length it was not told"),
        (pr.L0(price=pr.Budget(params=0.5)), "and the budget is met in one blow by finish"),
    ],
    ids=["free", "free with l2", "free noise", "hold", "budget"],
)
def test_said_while_attaching(method: pr.Method, text: str) -> None:
    net = chain()
    with pytest.warns(pr.ParingWarning) as caught:
        pr.attach(net, method, X)
    assert [text in str(one.message) for one in caught] == [True]
    assert text in attached(net).said[0]


@pytest.mark.parametrize(
    "method",
    [
        pr.L0(price=1e-9),
        pr.L0(price=pr.Price(0.0, layers={"0": 1e-3})),
        pr.L0(l2=1e-3),
        pr.L0(prior=0.2, kl=1e-3),
        pr.L0(price=1e-3, hold=0.0),
    ],
)
def test_not_said_while_attaching(method: pr.Method) -> None:
    net = chain()
    pr.attach(net, method, X)
    assert attached(net).said == []


@pytest.mark.parametrize(("every", "said"), [(4, False), (5, True), ("1ep", False), ("2ep", True)])
def test_a_look_that_training_is_too_short_for(every: str | int, said: bool) -> None:
    net, method = chain(), pr.Stack(pr.L0(price=1e-3), pr.Shrink(every=every))
    if not said:
        pr.attach(net, method, X, steps=4, epoch_steps=4)
        assert attached(net).said == []
        return
    with pytest.warns(pr.ParingWarning, match="but training has 4: nothing is cut while it lasts"):
        pr.attach(net, method, X, steps=4, epoch_steps=4)


def opened(net: nn.Module, count: int) -> None:
    """Open the first gates of the only place."""
    gate = next(gate for _, _, gate in gates(net))
    gate.log_alpha.data.fill_(-5.0)
    gate.log_alpha.data[:count] = 5.0


@pytest.mark.parametrize(("count", "said"), [(49, False), (52, False), (53, True), (100, True)])
def test_a_support_that_is_more_than_a_twentieth_too_large_when_it_is_held_is_said(count: int, said: bool) -> None:
    """A unit is 20 of 2,010 parameters and 49 fit into the budget of 1,005: 52 are 4.5 % above it, 53 are 6.5 %."""
    net = chain()
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.5), hold=0.5, gate_lr=10.0), X, steps=2)
    opened(net, count)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    run.penalty()
    if not said:
        run.step(opt)
        assert attached(net).said == []
        return
    share = (20 * count + 10) / 2010
    with pytest.warns(
        pr.ParingWarning, match="closed gates in one blow at step 1 of 2, where its gates are held"
    ) as caught:
        run.step(opt)
    assert len(caught) == 1
    assert f"parameters from {share:.1%} to 49.3% of the dense network" in str(caught[0].message)
    assert "raise gate_lr (10 now), or change hold (0.5 now)" in attached(net).said[0]


@pytest.mark.parametrize(("count", "said"), [(46, True), (47, False)])
def test_a_support_that_is_more_than_a_twentieth_too_small_when_it_is_held_is_said(count: int, said: bool) -> None:
    """46 units are 7.5 % below the budget of 1,005, 47 are 5.5 % and 48 are 3.5 %."""
    net = chain()
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.5), hold=0.5, gate_lr=10.0), X, steps=2)
    opened(net, count + (not said))
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    run.penalty()
    if not said:
        run.step(opt)
        assert attached(net).said == []
        return
    with pytest.warns(pr.ParingWarning, match=r"opened gates again at step 1 of 2.*from 46.3% to 49.3% of the dense"):
        run.step(opt)


def test_a_look_in_between_keeps_what_it_says_for_the_report() -> None:
    net = chain()
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.5)), X, steps=2)
    opened(net, 100)
    run.finish(early=True)
    assert run.report is not None
    assert "in one blow when the network was finished" in run.report.notes[0]
    assert attached(net).said == []
    assert not attached(net).quiet


class Averages(nn.Module):
    """Divides by the width it finds, so that units cannot be cut in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        out: Tensor = self.b(hidden) / hidden.shape[1]
        return out


def closed_in_place(method: pr.Method) -> tuple[pr.Run, list[str]]:
    """A finished network of which removal had to keep what its gates closed, and what was said."""
    torch.manual_seed(0)
    net = Averages()
    run = pr.attach(net, method, X, steps=1)
    opened(net, 49)
    run.penalty()
    run.step(torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0))
    with pytest.warns(pr.ParingWarning) as caught:
        run.finish(inplace=True)
    return run, [str(one.message) for one in caught]


def test_a_budget_that_is_missed() -> None:
    run, said = closed_in_place(pr.L0(price=pr.Budget(params=0.5, macs=0.6), hold=0.0))
    assert [text[:70] for text in said] == [
        "asked for 50.0% of the dense network's parameters and got 100.0%; its ",
        "asked for 60.0% of the dense network's macs and got 100.0%; its gates ",
    ]
    assert "its gates leave 49.3%, but removal had to keep more: 'b' has 510 weights more, 'a' has 459" in said[0]
    assert "removing it changed the outputs" in said[0]
    assert "With every gate closed but the last of each place it would be 1.5%" in said[0]
    assert run.report is not None
    assert run.report.notes[:2] == tuple(said)


def test_removal_that_keeps_what_gates_closed() -> None:
    _, said = closed_in_place(pr.L0(price=1e-6))
    assert len(said) == 1
    assert said[0].startswith("the finished network has 100.0% of the dense parameters; its gates leave 49.3%, but")


@pytest.mark.parametrize(("over", "said"), [(0.0, False), (0.019, False), (0.021, True)])
def test_two_percent_above_the_asked_size_are_a_miss(over: float, said: bool) -> None:
    net = chain()
    run = pr.attach(copy.deepcopy(net), pr.L0(price=1e-3), X)
    report = Report((), (2010, 2010), "eval", True, {}, ())
    asked = Asked(run.cost(), None, {"parameters": 1 / (1 + over)}, {}, zeros=False)
    assert bool(asked.missed(net, report, run.probe.example)) == said


def test_zeros_are_gone_where_weights_are_gated() -> None:
    net = chain()
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.4, macs=0.5), at="weights", hold=0.5), X, steps=2)
    for _, _, gate in gates(net):
        gate.log_alpha.data[torch.arange(gate.log_alpha.numel()).view(gate.shape) % 13 >= 5] = -5.0
    run.penalty()
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    run.step(opt)
    run.step(opt)
    small = run.finish()
    assert sum(int(torch.count_nonzero(p)) for p in small.parameters()) <= 0.4 * 2010
    assert run.report is not None
    assert run.report.notes == ()


def test_the_smallest_reachable_size() -> None:
    net = chain()
    method = pr.L0(price=pr.Budget(params=0.5, macs=0.5))
    pr.attach(net, method, X, steps=2)
    one = {"parameters": pytest.approx(30 / 2010), "macs": pytest.approx(19 / 1900)}
    assert method.least(net) == one
    assert method.targets == {"parameters": 0.5, "macs": 0.5}
    stack = pr.Stack(method, pr.Shrink(every=1))
    other = chain()
    pr.attach(other, stack, X, steps=2)
    assert stack.least(other) == one
    assert stack.targets == method.targets
