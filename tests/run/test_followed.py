"""A loop that did not do what its method needs is told so when the network is finished; any other hears nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paring as pr
from paring.methods import AtInit, ConcreteDropout, Masked, SparseVD

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def attached(method: pr.Method, **clock: int) -> tuple[nn.Module, pr.Run]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return net, pr.attach(net, method, X[:2], **clock)


def train(
    net: nn.Module, run: pr.Run, steps: int, *, follow: bool = True, charged: bool = True
) -> torch.optim.Optimizer:
    """A loop of so many steps that calls the run's step or the optimizer's own, with or without the penalty."""
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    for _ in range(steps):
        opt.zero_grad()
        loss = F.cross_entropy(net(X), Y)
        (loss + run.penalty() if charged else loss).backward()
        run.step(opt) if follow else opt.step()
    return opt


def finished(run: pr.Run, *texts: str, **how: Any) -> None:
    """Finish, and see that this is said, all of it and nothing else, by warnings and in the report."""
    with pytest.warns(pr.ParingWarning) as caught:
        run.finish(**how)
    said = [str(one.message) for one in caught]
    assert run.report is not None
    assert [text for text in run.report.notes if text in said] == said
    assert len(said) == len(texts), said
    for text, one in zip(texts, said, strict=True):
        assert text in one


def silent(run: pr.Run, **how: Any) -> None:
    """Finish; pytest makes an error of a warning."""
    run.finish(**how)
    assert run.report is not None
    assert run.report.notes == ()


@pytest.mark.parametrize(
    "method",
    [
        pr.GMP(density=0.2, every=1),
        pr.IMP(prunings=3, rate=0.5),
        pr.RigL(density=0.2, every=1),
        pr.L0(price=1e-3),
        pr.ContinuousSparsification(rewind=1),
        pr.Slimming(density=0.3),
        pr.Stack(pr.L0(price=1e-3), pr.Shrink(every=2)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_loop_that_never_calls_step(method: pr.Method) -> None:
    net, run = attached(method, steps=4)
    train(net, run, 4, follow=False)
    finished(run, "run.step was never called (step 0 of 4)")
    silent(run, early=True)


@pytest.mark.parametrize("method", [pr.Dense(), Masked(), AtInit("magnitude", density=0.5), ConcreteDropout()])
def test_what_decides_nothing_while_training_needs_no_step(method: pr.Method) -> None:
    net, run = attached(method, steps=4)
    train(net, run, 2, follow=False)
    silent(run)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (pr.GMP(density=0.2, every=1, ramp=(0.0, 0.75)), "GMP prunes until step 6, so "),
        (pr.RigL(density=0.2, every=1), ". Train RigL to the end"),
        (pr.L0(price=1e-3, hold=0.25), "the gates were not yet held, which begins at step 6."),
        (pr.L0(price=1e-3), ". Train L0 to the end"),
        (pr.ContinuousSparsification(searches=1, ticket="none"), "and stands at 3.76, not 200"),
        (SparseVD(rate=1e-3, warmup=0.5), "for the first 50% of training and stands at 0.0005, not 0.001"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_training_that_ends_early(method: pr.Method, text: str) -> None:
    net, run = attached(method, steps=8)
    train(net, run, 2)
    finished(run, text)
    assert run.report is not None
    assert run.report.notes[0].startswith("training ended at step 2 of 8")
    silent(run, early=True)
    train(net, run, 6)
    silent(run)
    silent(run, net=copy.deepcopy(net))


def test_the_density_that_gmp_stands_at() -> None:
    net, run = attached(pr.GMP(density=0.2, every=1), steps=8)
    train(net, run, 5)
    nonzeros = sum(int((layer.weight * layer.weight_gate.mask != 0).sum()) for layer in (net[0], net[2]))
    finished(run, f"so {nonzeros / 108:.1%} of its weights are open and not 20.0%")


def test_rounds_that_are_left() -> None:
    net, run = attached(pr.IMP(prunings=2, rate=0.5), steps=2)
    opt = train(net, run, 2)
    finished(run, "IMP has 3 rounds, and training ended in round 0, counted from 0")
    assert run.next_round(opt)
    finished(run, "training ended at step 0 of 2", "IMP has 3 rounds, and training ended in round 1")
    train(net, run, 2)
    assert run.next_round(opt)
    train(net, run, 2)
    silent(run)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (pr.L0(price=1e-3), True),
        (pr.L0(price=pr.Price(layers={"0": 1e-3})), True),
        (pr.Stack(pr.Dense(), pr.L0(price=1e-3)), True),
        (SparseVD(rate=1e-3, warmup=0), True),
        (ConcreteDropout(), True),
        (pr.RigL(density=0.5, every=1), False),
        (pr.Dense(), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_penalty_that_nobody_reads(method: pr.Method, said: bool) -> None:
    net, run = attached(method, steps=2)
    train(net, run, 2, charged=False)
    if not said:
        return silent(run)
    finished(run, "run.penalty() was never read")
    run.penalty()
    return silent(run)


def test_a_run_that_goes_on_from_a_state_is_where_that_was() -> None:
    method = pr.IMP(prunings=1, rate=0.5)
    net, run = attached(method, steps=2)
    opt = train(net, run, 2)
    assert run.next_round(opt)
    train(net, run, 2)
    other, again = attached(method, steps=2)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(run.state_dict())
    silent(again)
    _, begun = attached(method, steps=2, step=1)
    finished(begun, "run.step was never called (step 1 of 2)")
