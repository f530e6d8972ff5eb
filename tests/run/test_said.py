"""What was asked and not done is said: a warning when it is noticed, and a line of the run's report."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.core import attached


class Talks(pr.Method):
    """Says something in every hook that a method may say it in."""

    def attach(self, net: nn.Module, probe: Any) -> None:
        attached(net).say("while attaching")

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: pr.core.Clock) -> None:
        attached(net).say("while training")

    def finish(self, net: nn.Module) -> None:
        attached(net).say("while finishing")


def started() -> tuple[nn.Module, pr.Run]:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.warns(pr.ParingWarning, match="while attaching") as caught:
        run = pr.attach(net, Talks(), torch.randn(2, 3), steps=2)
    assert len(caught) == 1
    return net, run


def train(net: nn.Module, run: pr.Run, steps: int, *, follow: bool = True) -> None:
    """A loop that calls the run's step, or the optimizer's own."""
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    for _ in range(steps):
        (net(torch.randn(2, 3)).sum() + run.penalty()).backward()
        run.step(opt) if follow else opt.step()


def stepped(net: nn.Module, run: pr.Run) -> None:
    with pytest.warns(pr.ParingWarning, match="while training") as caught:
        train(net, run, 2)
    assert len(caught) == 1


def test_all_that_is_said_is_in_the_report_and_the_run_stays_as_it_is() -> None:
    net, run = started()
    stepped(net, run)
    for _ in range(2):
        with pytest.warns(pr.ParingWarning, match="while finishing") as caught:
            run.finish()
        assert len(caught) == 1
        assert run.report is not None
        assert run.report.notes == ("while attaching", "while training", "while finishing")
        assert str(run.report).endswith("\nwhile attaching\nwhile training\nwhile finishing")
    assert attached(net).said == ["while attaching", "while training"]


def test_what_was_said_after_a_copy_was_made_is_in_the_copys_report() -> None:
    net, run = started()
    average = copy.deepcopy(net)
    stepped(net, run)
    with pytest.warns(pr.ParingWarning, match="while finishing"):
        run.finish(average, inplace=True)
    assert run.report is not None
    assert run.report.notes == ("while attaching", "while training", "while finishing")


def test_what_was_said_goes_with_the_state() -> None:
    net, run = started()
    stepped(net, run)
    other, again = started()
    again.load_state_dict(run.state_dict())
    assert attached(other).said == ["while attaching", "while training"]
    run.state_dict()["said"].append("nothing")
    assert attached(net).said == ["while attaching", "while training"]
