"""Continuous Sparsification against the whole algorithm written out with plain tensors, and its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring import select
from paring.core import gates
from paring.data import load
from paring.gates import SigmoidGate
from paring.methods import ContinuousSparsification
from paring.models import build
from paring.testing import Chain, chain_batch, same_state
from paring.train import Recipe, fit

STEPS, EPOCH = 12, 4
LR, DECAY, MOMENTUM = 0.5, 1e-2, 0.9
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = (X[:, 0] > X[:, 1]).long()


def batch(step: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(10) + 10 * (step % 4)
    return X[rows], Y[rows]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def rate_of(step: int) -> float:
    return LR if step < 8 else 0.1 * LR


def naive(method: ContinuousSparsification) -> tuple[list[Tensor], list[Tensor]]:
    """Algorithm 2 of the paper, by hand: weights and biases, and logits, after the last round."""
    own = [p.detach().clone() for p in network().parameters()]
    which = (0, 2)
    s = [torch.full_like(own[i], method.s0) for i in which]
    factor = 1 / (1 / (1 + math.exp(-method.s0))) if method.rescale else 1.0
    kept: list[Tensor] = []
    to = int(method.rewind)
    for number in range(method.rounds):
        search = number < method.searches
        begin = 0 if search or method.ticket == "prune" else to
        if not search and method.ticket == "rewind":
            own = [p.clone() for p in kept]
        mask = [(value > 0).double() for value in s]
        if not search:
            for i, m in zip(which, mask, strict=True):
                own[i] = own[i] * m
        speeds = [torch.zeros_like(p) for p in (*own, *s)]
        for step in range(begin, STEPS):
            beta = method.final_beta ** (step / STEPS)
            if method.per == "epoch":
                beta = method.final_beta ** ((step // EPOCH) / (STEPS // EPOCH - 1))
            p = [t.clone().requires_grad_() for t in own]
            q = [t.clone().requires_grad_() for t in s]
            soft = [factor * (torch.sigmoid(beta * t) if search else m) for t, m in zip(q, mask, strict=True)]
            x, y = batch(step)
            hidden = torch.relu(x @ (p[0] * soft[0]).T + p[1])
            value = F.cross_entropy(hidden @ (p[2] * soft[1]).T + p[3], y)
            if search:
                value = value + method.rate * sum(m.sum() for m in soft)
            wanted = [*p, *q] if search else p
            grads = list(torch.autograd.grad(value, wanted))
            lr = rate_of(STEPS - 1 if method.ticket == "prune" and method.flat and not search else step)
            for i, g in enumerate(grads):
                target, decay = (own[i], DECAY) if i < 4 else (s[i - 4], 0.0)
                speeds[i] = MOMENTUM * speeds[i] + g + decay * target
                target -= (lr if i < 4 else method.gate_lr * lr) * speeds[i]
            if not search:
                for i, m in zip(which, mask, strict=True):
                    own[i] *= m
            if number == 0 and step + 1 == to:
                kept = [t.clone() for t in own]
        if search and number < method.searches - 1:
            s = [torch.minimum(method.final_beta * t, torch.tensor(method.s0, dtype=torch.float64)) for t in s]
    return own, s


def trained(method: ContinuousSparsification) -> tuple[nn.Sequential, pr.Run]:
    net = network()
    run = pr.attach(net, method, X[:2], steps=STEPS, epoch_steps=EPOCH)
    groups = run.parameter_groups(lr=LR, weight_decay=DECAY)
    opt = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    shares = [group["lr"] / LR for group in opt.param_groups]
    while True:
        while run.clock.step < STEPS:
            for group, share in zip(opt.param_groups, shares, strict=True):
                group["lr"] = share * rate_of(run.schedule_step)
            x, y = batch(run.clock.step)
            opt.zero_grad()
            (F.cross_entropy(net(x), y) + run.penalty()).backward()
            run.step(opt)
            if run.clock.round >= method.searches:
                for gate in sigmoids(net):
                    assert bool(gate.frozen)
        if not run.next_round(opt):
            return net, run


def sigmoids(net: nn.Module) -> list[SigmoidGate]:
    return [gate for _, _, gate in gates(net) if isinstance(gate, SigmoidGate)]


@pytest.mark.parametrize(
    "method",
    [
        ContinuousSparsification(searches=2, rewind=3, final_beta=200.0),
        ContinuousSparsification(searches=2, rewind=5, final_beta=30.0, s0=0.05, rate=1e-2, rescale=True, gate_lr=3.0),
        ContinuousSparsification(searches=3, rewind=1, final_beta=20.0, ticket="prune", rate=1e-3, s0=-0.02),
        ContinuousSparsification(searches=1, rewind=1, final_beta=20.0, ticket="prune", flat=False, s0=0.02),
        ContinuousSparsification(searches=2, rewind=1, final_beta=50.0, ticket="none", per="epoch"),
        ContinuousSparsification(searches=2, rewind=1, final_beta=1.0, ticket="none"),
    ],
    ids=["rewind", "rescaled", "prune", "whole schedule", "per epoch", "no growth"],
)
def test_is_the_algorithm_of_the_paper(method: ContinuousSparsification) -> None:
    own, logits = naive(method)
    net, run = trained(method)
    found = [net[0].weight, net[0].bias, net[2].weight, net[2].bias]
    assert isinstance(found[0], Tensor)
    shares = [float((s > 0).double().mean()) for s in logits]
    assert 0 < shares[0] < 1, "a test where nothing or everything closes shows little"
    for mine, theirs in zip(found, own, strict=True):
        assert isinstance(mine, Tensor)
        assert float((mine.detach() - theirs).abs().max()) < 1e-10
    for gate, s in zip(sigmoids(net), logits, strict=True):
        assert torch.equal(gate.support(), s > 0)
        if method.ticket == "none":
            assert float((gate.s.detach() - s).abs().max()) < 1e-10
    x = torch.randn(20, 5, dtype=torch.float64)
    assert float((run.finish()(x) - net.eval()(x)).detach().abs().max()) < 1e-10


def test_temperatures() -> None:
    method = ContinuousSparsification()
    assert [method.beta(pr.core.Clock(t, 0, 100)) for t in (0, 50, 100)] == pytest.approx([1.0, 200**0.5, 200.0])
    epochs = ContinuousSparsification(per="epoch")
    found = [epochs.beta(pr.core.Clock(t, 0, 85 * 352, 352)) for t in (0, 351, 352, 84 * 352, 85 * 352)]
    assert found == pytest.approx([1.0, 1.0, 1.0651, 200.0, 200.0], rel=1e-4)
    assert ContinuousSparsification(final_beta=1).beta(pr.core.Clock()) == 1.0


def test_defaults_are_the_papers() -> None:
    method = ContinuousSparsification()
    assert (method.rate, method.s0, method.final_beta, method.rewind, method.gate_lr) == (1e-8, 0.0, 200.0, None, 1.0)
    net = Chain()
    run = pr.attach(net, method, chain_batch(2)[0], steps=40, epoch_steps=10)
    masked = sum(gate.s.numel() for gate in sigmoids(net))
    assert run.penalty().item() == pytest.approx(1e-8 * masked / 2, rel=1e-4)
    assert run.method.point(run.clock) == 5, "an eighth of a short round"
    assert run.method.point(pr.core.Clock(0, 0, 400, 10)) == 20, "the paper's two epochs"
    (own,) = [group for group in run.parameter_groups(lr=0.1, weight_decay=1e-4) if group["name"] == "gates"]
    assert (own["lr"], own["weight_decay"]) == (0.1, 0.0)


def budget_run(method: ContinuousSparsification, steps: int = 40) -> tuple[Chain, pr.Run]:
    torch.manual_seed(0)
    net = Chain()
    run = pr.attach(net, method, chain_batch(2)[0], steps=steps, epoch_steps=10)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.02, weight_decay=1e-3), lr=0.02, momentum=0.9)
    while True:
        while run.clock.step < steps:
            x, y = chain_batch()
            opt.zero_grad()
            (F.cross_entropy(net(x), y) + run.penalty()).backward()
            run.step(opt)
            if run.clock.round >= method.searches:
                for name, _, gate in gates(net):
                    closed = net.get_submodule(name).weight[~gate.support()]  # type: ignore[index]
                    assert bool((closed == 0).all()), "momentum or decay moved a closed weight"
        if not run.next_round(opt):
            return net, run


@pytest.mark.parametrize("density", [0.5, 0.07])
@pytest.mark.parametrize("ticket", ["rewind", "none"])
def test_the_asked_density_is_hit_exactly(density: float, ticket: Any) -> None:
    method = ContinuousSparsification(density=density, searches=2, ticket=ticket, rewind=4)
    net, run = budget_run(method)
    total = sum(gate.s.numel() for gate in sigmoids(net))
    if ticket == "none":
        before = sum(int(gate.support().sum()) for gate in sigmoids(net)) / total
        assert before == pytest.approx(density, abs=0.1), "steered there before the projection"
        run.method.finish(net)
    assert sum(int(gate.support().sum()) for gate in sigmoids(net)) == round(density * total)
    small = run.finish()
    nonzero = sum(int((m.weight != 0).sum()) for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    assert nonzero <= round(density * total)
    x, _ = chain_batch()
    assert torch.allclose(small(x), net.eval()(x), atol=1e-5)


def test_rounds_share_the_way_to_the_density_and_allocations_share_it_among_layers() -> None:
    method = ContinuousSparsification(density=0.125, searches=3)
    assert [method.asked(number) for number in range(3)] == pytest.approx([0.5, 0.25, 0.125])
    given = select.Given((("conv*", 0.5), ("fc1", 0.1), ("fc2", 1.0)))
    net, _ = budget_run(ContinuousSparsification(density=0.01, searches=1, rewind=4, allocation=given), steps=20)
    for name, _, gate in gates(net):
        share = {"fc1": 0.1, "fc2": 1.0}.get(name, 0.5)
        assert int(gate.support().sum()) == round(share * gate.support().numel())


def test_a_density_without_steering_leaves_the_search_alone() -> None:
    """Temperature one and a threshold at the end: what the logits of an ordinary search say, cut at the asked share."""
    plain, _ = budget_run(ContinuousSparsification(final_beta=1, searches=1, ticket="none"))
    wanted, run = budget_run(
        ContinuousSparsification(final_beta=1, searches=1, ticket="none", density=0.1, steer=False)
    )
    flat = torch.cat([gate.s.detach().flatten() for gate in sigmoids(plain)])
    assert torch.equal(flat, torch.cat([gate.s.detach().flatten() for gate in sigmoids(wanted)]))
    run.method.finish(wanted)
    chosen = torch.cat([gate.support().flatten() for gate in sigmoids(wanted)])
    assert int(chosen.sum()) == round(0.1 * len(flat))
    assert flat[chosen].min() >= flat[~chosen].max()


def test_equal_logits_are_split_exactly_too() -> None:
    net = Chain()
    run = pr.attach(net, ContinuousSparsification(density=0.3, rewind=1), chain_batch(2)[0], steps=5)
    run.method.finish(net)
    total = sum(gate.s.numel() for gate in sigmoids(net))
    assert sum(int(gate.support().sum()) for gate in sigmoids(net)) == round(0.3 * total)


def test_a_ticket_gets_smaller_while_it_trains() -> None:
    """In the last round what is closed is settled, so units that nobody reads are cut out live."""
    search = ContinuousSparsification(density=0.06, searches=1, rewind=4)
    method = pr.Stack(search, pr.Shrink(every=5, multiple_of=1, saving=0.01, measure=False))
    torch.manual_seed(0)
    net = Chain().double()
    run = pr.attach(net, method, chain_batch(2, dtype=torch.float64)[0], steps=15)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.02), lr=0.02, momentum=0.9)
    while True:
        while run.clock.step < 15:
            x, y = chain_batch(dtype=torch.float64)
            opt.zero_grad()
            (F.cross_entropy(net(x), y) + run.penalty()).backward()
            run.step(opt)
        assert bool(run.shrinks) == (run.clock.round == 1)
        if not run.next_round(opt):
            break
    assert any(record["done"] for record in run.shrinks)
    for name, _, gate in gates(net):
        assert gate.shape == net.get_submodule(name).weight.shape  # type: ignore[union-attr]
    small, x = run.finish(), chain_batch(20, dtype=torch.float64)[0]
    assert float((small(x) - net.eval()(x)).detach().abs().max()) < 1e-10


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop", [4, 13, 23])
def test_resumes_bit_for_bit_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    data = load("digits", validation=100)
    recipe = Recipe(epochs=2, batch=300, lr=0.1, optimizer="sgd", weight_decay=1e-3, seed=2, ema=0.5)
    method = ContinuousSparsification(searches=2, rewind="0.5ep", density=0.2, final_beta=50.0)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build("lenet_300_100", shape=data.shape, classes=data.classes)

    whole = fit(network(), method, data, recipe, folder=tmp_path / "whole", progress=False)
    step, left = pr.Run.after_step, iter(range(stop - 1, -1, -1))

    def killing(self: pr.Run, opt: torch.optim.Optimizer, left: Iterator[int] = left) -> None:
        step(self, opt)
        if next(left) == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pr.Run, "after_step", killing)
        with pytest.raises(Killed):
            fit(network(), method, data, recipe, folder=tmp_path / "stopped", progress=False)
    again = fit(network(), method, data, recipe, folder=tmp_path / "stopped", progress=False)
    assert [row["round"] for row in whole.rows] == [0, 0, 1, 1, 2, 2]
    assert same_state(again.net.state_dict(), whole.net.state_dict())
    found = sigmoids(whole.net)
    assert sum(int(g.support().sum()) for g in found) == round(0.2 * sum(g.s.numel() for g in found))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"rate": -1.0}, r"rate=-1.0\): must be a number that is not negative"),
        ({"searches": 0}, r"searches=0\): a whole number, at least 1"),
        ({"final_beta": 0.5}, r"final_beta=0.5\): must be at least 1"),
        ({"ticket": "win"}, r"ticket='win'\): choose one of rewind, prune, none"),
        ({"density": 0.0}, r"density=0.0\): must lie in \(0, 1\]"),
        ({"s0": math.inf}, r"s0=inf\): must be a finite number"),
        ({"per": "hour"}, r"per='hour'\): choose one of step, epoch"),
        ({"rewind": "soon"}, r"give optimizer steps"),
        ({"allocation": select.Uniform()}, r"shares a density among layers: give density"),
    ],
)
def test_refusals(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ContinuousSparsification(**settings)


def test_lengths_that_are_needed_and_unknown_are_refused() -> None:
    x = chain_batch(2)[0]
    with pytest.raises(ValueError, match="temperature grows within a round; tell attach how long that is with steps="):
        pr.attach(Chain(), ContinuousSparsification(rewind=2), x)
    with pytest.raises(ValueError, match="with epoch_steps="):
        pr.attach(Chain(), ContinuousSparsification(rewind=2, per="epoch"), x, steps=10)
    with pytest.raises(ValueError, match="counts epochs: tell attach"):
        pr.attach(Chain(), ContinuousSparsification(rewind="2ep"), x, steps=10)
    with pytest.raises(ValueError, match="is step 10, but a round has only 10"):
        pr.attach(Chain(), ContinuousSparsification(rewind=10), x, steps=10)
    net = Chain()
    pr.attach(net, ContinuousSparsification(rewind=2), x, steps=10)  # and after a refusal nothing is left in the way


def test_many_searches_stay_finite() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    run = pr.attach(net, ContinuousSparsification(searches=20, s0=-0.05, rewind=0), torch.randn(2, 6), steps=2)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    while True:
        for _ in range(2):
            opt.zero_grad()
            (net(torch.randn(4, 6)).square().sum() + run.penalty()).backward()
            run.step(opt)
        if not run.next_round(opt):
            break
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert bool(net(torch.randn(2, 6)).isfinite().all())
