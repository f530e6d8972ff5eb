"""L0 that rewinds: gates find the units, weights train from the rewind point as if the others had never been there."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.cli.config import plain
from paring.core import Stack, gates
from paring.core import short_repr as short
from paring.methods import IMP
from paring.testing.nets import Chain, chain_batch
from paring.train.ema import Ema

pytestmark = [BY_HAND, CUT_SHORT]

STEPS, HELD = 20, 10
METHOD = pr.L0(price=pr.Budget(params=0.4), at="units", hold=pr.Hold(0.5, rewind=0))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(100 + step)
    x, y = chain_batch()
    return x.double(), y


def one_step(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, step: int) -> None:
    x, y = batch(step)
    opt.zero_grad()
    (F.cross_entropy(net(x), y) + run.penalty()).backward()
    run.step(opt)


@pytest.mark.parametrize("shrink", [False, True], ids=["whole", "shrinking"])
@pytest.mark.parametrize("to", [0, 3])
def test_the_rest_trains_as_the_small_network_alone(shrink: bool, to: int) -> None:
    torch.manual_seed(0)
    net = Chain().double()
    method: pr.Method = pr.L0(price=pr.Budget(params=0.4), at="units", hold=pr.Hold(0.5, rewind=to))
    if shrink:
        method = Stack(method, pr.Shrink(every=7, multiple_of=1, saving=0.01, measure=False, fold=True))
    run = pr.attach(net, method, batch(0)[0][:2], steps=STEPS)
    opt = torch.optim.Adam(run.parameter_groups(lr=0.01))
    alone = copy.deepcopy(net)
    for step in range(STEPS):
        one_step(net, run, opt, step)
        if step + 1 == to:
            alone.load_state_dict(net.state_dict())
        if step + 1 == HELD:
            closed = {name: gate.permanently_closed().clone() for name, _, gate in gates(net)}
    found = run.finish()
    assert sum(p.numel() for p in found.parameters()) < 0.5 * sum(p.numel() for p in Chain().parameters())

    masked = pr.L0(at="units")
    plain = Chain().double()
    plain.load_state_dict({name: v for name, v in alone.state_dict().items() if name in plain.state_dict()})
    other = pr.attach(plain, masked, batch(0)[0][:2])
    for name, _, gate in gates(plain):
        gate.log_alpha.data.copy_(torch.where(closed[name], -99.0, 99.0))  # type: ignore[union-attr, operator]
        gate.freeze()  # type: ignore[operator]
    small = other.finish()
    opt = torch.optim.Adam(small.parameters(), lr=0.01)
    for step in range(HELD, STEPS):
        x, y = batch(step)
        opt.zero_grad()
        F.cross_entropy(small.train()(x), y).backward()
        opt.step()
    x = batch(99)[0]
    assert (found.eval()(x) - small.eval()(x)).abs().max() <= 1e-10


def test_at_the_moment_of_return() -> None:
    torch.manual_seed(0)
    net = Chain().double()
    first = copy.deepcopy(net.state_dict())
    run = pr.attach(net, METHOD, batch(0)[0][:2], steps=STEPS)
    opt = torch.optim.Adam(run.parameter_groups(lr=0.01))
    ema, average = Ema(net, 0.9), AveragedModel(net)
    run.track(ema, average)
    for step in range(HELD):
        one_step(net, run, opt, step)
        ema.update()
        average.update_parameters(net)
        if step + 1 < HELD:
            assert run.point is not None
            assert any(not torch.equal(net.state_dict()[name], value) for name, value in first.items())
    now = net.state_dict()
    assert all(torch.equal(now[name], value) for name, value in first.items())
    assert all(set(gate.value().unique().tolist()) <= {0.0, 1.0} for _, _, gate in gates(net))
    assert all(
        torch.equal(a.value(), b.value()) for (_, _, a), (_, _, b) in zip(gates(net), gates(average), strict=True)
    )
    assert not opt.state, "the optimizer has forgotten"
    assert run.point is None, "kept no longer than needed"
    assert ema.updates == 1, "one update since"
    one_step(net, run, opt, HELD)
    assert any(not torch.equal(net.state_dict()[name], value) for name, value in first.items()), (
        "once, not at every step"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pr.L0(price=1e-3, hold=pr.Hold(rewind=0)), "needs last="),
        (lambda: pr.L0(price=1e-3, hold=pr.Hold(0.5, rewind="half")), "rewind"),
        (lambda: pr.L0(price=1e-3, hold=pr.Hold(0.5, rewind=-1)), "rewind"),
    ],
)
def test_settings_that_make_no_sense(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_lengths_that_do_not_fit() -> None:
    x = batch(0)[0][:2]
    with pytest.raises(ValueError, match="step 10, but the gates are held from step 10 on"):
        pr.attach(Chain().double(), pr.L0(price=1e-3, hold=pr.Hold(0.5, rewind=10)), x, steps=20)
    with pytest.raises(ValueError, match="how long training is"):
        pr.attach(Chain().double(), pr.L0(price=1e-3, hold=pr.Hold(0.5, rewind=0)), x)
    with pytest.raises(ValueError, match=r"different rewind points, steps \[0, 4\]"):
        pr.attach(Chain().double(), Stack(METHOD, IMP(rewind=4)), x, steps=20)


@pytest.mark.parametrize("fold", [False, True])
def test_dropping_out_is_the_same_with_and_without_cuts(fold: bool) -> None:
    """Every unit draws the noise it would have drawn in the whole network."""
    outputs = []
    for every in (7, 10_000):
        torch.manual_seed(0)
        net = Chain().double()
        gates_ = pr.L0(price=pr.Budget(params=0.4), at="units", hold=pr.Hold(0.5, rewind=0, drop=0.3))
        cuts = pr.Shrink(every=every, multiple_of=1, saving=0.01, measure=False, fold=fold)
        run = pr.attach(net, Stack(gates_, cuts), batch(0)[0][:2], steps=2 * STEPS)
        opt = torch.optim.Adam(run.parameter_groups(lr=0.01))
        for step in range(2 * STEPS):
            one_step(net, run, opt, step)
        outputs.append(run.finish().eval()(batch(99)[0]))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-10


def test_drop_is_refused_where_it_would_do_nothing() -> None:
    for told in ({"at": "weights", "hold": pr.Hold(0.5, drop=0.5)}, {"price": 1e-3, "hold": pr.Hold(drop=0.5)}):
        with pytest.raises(ValueError, match="whose gates are held"):
            pr.L0(**told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a probability"):
        pr.Hold(drop=1.0)
    with pytest.raises(ValueError, match="drop names 'nothing'"):
        pr.attach(
            Chain(),
            pr.L0(price=pr.Budget(params=0.5), hold=pr.Hold(drop=(("nothing", 0.5),))),
            batch(0)[0][:2],
            steps=9,
        )
    assert pr.Hold(drop={"fc*": 0.5}).drop == (("fc*", 0.5),)


def test_a_number_is_a_hold_and_stands_for_it_in_configs_and_labels() -> None:
    assert pr.L0(hold=0.4) == pr.L0(hold=pr.Hold(0.4))
    assert pr.L0(hold=None) == pr.L0()
    assert [pr.L0(hold=0.4).holding, pr.L0().holding, pr.L0(price=pr.Budget(params=0.5)).holding] == [0.4, 0.0, 0.25]
    assert short(pr.L0(hold=0.4)) == "L0(hold=0.4)"
    assert short(pr.L0(hold=pr.Hold(0.4, rewind=0))) == "L0(hold=Hold(last=0.4, rewind=0))"
    assert plain(pr.L0(hold=0.4))["hold"] == 0.4
    assert plain(pr.L0(), hashed=True) == {"type": "L0"}
    assert plain(pr.L0(hold=pr.Hold(0.4, rewind="1ep")))["hold"]["rewind"] == "1ep"
