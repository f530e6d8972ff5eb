"""Which weights a method closes: also in a network that shrinks meanwhile, with structures, and in the network's order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paring as pr
from paring import select
from paring.core import Method, Stack, gates
from paring.methods import DNW, GMP, IMP, SET, AtInit, RigL, Shrink
from paring.methods.chosen import put_last

SHRINK = Shrink(every=5, multiple_of=1, saving=0.001, measure=False)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def weights(net: nn.Module) -> int:
    return sum(int((m.weight != 0).sum()) for m in net.modules() if isinstance(m, nn.Linear))


def trained(method: Method, steps: int = 60) -> tuple[Any, list[int]]:
    """The run of a small network and how many weights were open at the end of each round."""
    net = mlp()
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
    y = x[:, :5].argmax(1)
    run = pr.attach(net, method, x[:2], steps=steps, epoch_steps=10)
    opt, left = torch.optim.Adam(run.parameter_groups(lr=5e-3)), []
    while True:
        while run.clock.step < steps:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            run.step(opt)
        left.append(weights(net))
        if not run.next_round(opt):
            return run, left


@pytest.mark.parametrize(
    "method",
    [
        IMP(prunings=4, rate=0.5, rewind=2),
        IMP(prunings=4, rate=0.5, retrain="none", allocation=select.Uniform()),
        GMP(density=0.0625, every=2, recover=False),
        GMP(density=0.0625, every=2, recover=False, allocation=select.Global()),
        GMP(density=0.0625, every=2),
    ],
    ids=str,
)
def test_a_density_is_of_the_whole_network_also_where_it_shrinks(method: Method) -> None:
    asked = round(0.0625 * weights(mlp()))
    _, alone = trained(method)
    run, left = trained(Stack(method, SHRINK))
    assert any(cut["done"] for cut in run.shrinks)
    assert alone[-1] == pytest.approx(asked, abs=2)
    assert 0.5 * asked < left[-1] <= asked + 2  # what was cut was open and dead


@pytest.mark.parametrize(
    "method",
    [
        IMP(prunings=21, rate=0.2, rewind=2, allocation=select.Uniform()),
        GMP(density=0.0625, every=2, recover=False),
        GMP(density=0.02, every=2, recover=False, allocation=select.Global()),
    ],
    ids=str,
)
def test_what_is_closed_for_good_stays_closed_while_the_network_shrinks(method: Method) -> None:
    """More dies with what is cut than was asked for; nothing closed comes in for it."""
    net = mlp()
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
    run = pr.attach(net, Stack(method, SHRINK), x[:2], steps=60, epoch_steps=10)
    opt = torch.optim.Adam(run.parameter_groups(lr=5e-3))
    before = {name: gate.whole(gate.support()) for name, _, gate in gates(net)}
    while True:
        while run.clock.step < 60:
            opt.zero_grad()
            F.cross_entropy(net(x), x[:, :5].argmax(1)).backward()
            run.step(opt)
            now = {name: gate.whole(gate.support()) for name, _, gate in gates(net)}
            assert not any(bool((now[name] & ~before[name]).any()) for name in now)
            before = now
        if not run.next_round(opt):
            break
    assert any(cut["done"] for cut in run.shrinks)


def test_closed_pieces_stay_closed() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    method = IMP(prunings=3, rate=0.5, structure=select.Units(), at="weights:0", allocation=select.Uniform())
    run = pr.attach(net, method, torch.zeros(2, 4), steps=1)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0))
    before = None
    while True:
        net(torch.randn(2, 4)).sum().backward()
        run.step(opt)
        mask = next(gate.mask for _, _, gate in gates(net)).clone()
        assert before is None or not bool((mask & ~before).any())
        before = mask
        if not run.next_round(opt):
            break
    assert mask.any(1).sum() == 1


def test_the_units_of_an_embedding_are_its_columns() -> None:
    net = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(24, 2))
    method = AtInit(score="magnitude", density=0.5, structure=select.Units(), at="weights:0")
    strength = net[0].weight.detach().abs().sum(0)
    pr.attach(net, method, torch.zeros(2, 3, dtype=torch.long))
    mask = next(gate.support() for _, _, gate in gates(net))
    assert torch.equal(mask, select.top(strength, 4).expand(12, 8))


@pytest.mark.parametrize("at", ["weights", ("weights:4", "weights:2", "weights:0")])
def test_the_first_layer_is_the_networks(at: Any) -> None:
    net = mlp()
    pr.attach(
        net, RigL(density=0.2, allocation=select.Uniform(first_dense=True), at=at), torch.zeros(2, 20), steps=1000
    )
    found = {name: float(gate.support().float().mean()) for name, _, gate in gates(net)}
    assert found["0"] == 1
    assert [found["2"], found["4"]] == pytest.approx([0.2, 0.2], abs=0.01)


def test_n_of_m_follows_the_schedule() -> None:
    net = mlp()
    x = torch.randn(8, 20)
    method = GMP(density=0.5, ramp=(0.25, 0.75), every=5, structure=select.NM(2, 4))
    run = pr.attach(net, method, x[:2], steps=40)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1))
    for _ in range(40):
        opt.zero_grad()
        net(x).sum().backward()
        run.step(opt)
        kept = next(gate.mask for _, _, gate in gates(net)).view(64, 5, 4).sum(2)
        asked = 1.0 if run.clock.step < 5 else 1 - method.schedule(run.clock.step // 5 * 5 / 40)
        assert kept.unique().tolist() == [4 if asked > 0.755 else 3 if asked > 0.505 else 2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GMP(structure=select.NM(2, 4)), r"GMP\(density=0.1\) with structure NM\(n=2, m=4\): that keeps 0.5"),
        (lambda: DNW(density=0.4, structure=select.NM(2, 4)), "keeps 0.5 of the weights and nothing else, not 0.4"),
        (lambda: AtInit(density=0.6, structure=select.NM(1, 2)), "ask for this density"),
        (lambda: IMP(prunings=2, rate=0.5, structure=select.NM(2, 4)), "not 0.25"),
        (lambda: GMP(power=-1), "power=-1"),
        (lambda: GMP(power=float("nan")), "power=nan"),
        (lambda: GMP(ramp=(0, 0.5, 0.9)), "two fractions"),  # type: ignore[arg-type]
        (lambda: IMP(prunings=3.0), "whole number"),  # type: ignore[arg-type]
        (lambda: IMP(prunings=2.5), "whole number"),  # type: ignore[arg-type]
        (lambda: pr.ContinuousSparsification(searches=1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: AtInit(iterations=1.5), "whole number"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_n_of_m_by_two_prunings() -> None:
    """Rates are rounded: two prunings of 29.3 % end at 0.49985."""
    _, left = trained(IMP(prunings=2, rate=0.293, structure=select.NM(2, 4)), steps=5)
    assert left[-1] == weights(mlp()) // 2


@pytest.mark.parametrize("method", [RigL(every=100), SET(every=90), SET(every=100)])
def test_a_method_that_never_exchanges_says_so(method: Method) -> None:
    with pytest.warns(UserWarning, match="will exchange nothing and keep its random mask"):
        pr.attach(mlp(), method, torch.zeros(2, 20), steps=90)
    pr.attach(mlp(), replace(method, every=60), torch.zeros(2, 20), steps=90)


def test_scores_in_half_precision() -> None:
    """What was cut adds nothing to a piece: a closed entry weighs less than the smallest open one, however many there are."""
    score = put_last(torch.full((2, 4096), 6e-8, dtype=torch.float16), torch.tensor([[True], [False]]).expand(2, 4096))
    assert float(score[0].sum()) == pytest.approx(0, abs=1e-30)
    assert bool((score[0] < 0).all())
