"""Gates on a trained network change nothing at first and close in the order of what the loss would lose."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paring as pr
from paring.core import attached, gates
from paring.gates import StochasticGate, relax
from paring.methods.l0 import L0
from paring.methods.trained_start import importance_per_cost, is_trained
from paring.testing import same_state
from paring.testing.nets import Chain, chain_batch

STEPS = 40


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1000 + step)
    x, y = chain_batch(16)
    return x.double(), y


def seen() -> Chain:
    """A network whose BatchNorm has seen data."""
    torch.manual_seed(0)
    net = Chain().double()
    net(batch()[0])
    return net


def trained(method: pr.Method, net: nn.Module | None = None, lr: float = 1e-2) -> tuple[nn.Module, pr.Run, Any]:
    net = seen() if net is None else net
    run = pr.attach(net, method, batch()[0][:2], steps=STEPS)
    return net, run, torch.optim.AdamW(run.parameter_groups(lr=lr), lr=lr)


def step(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, number: int) -> None:
    x, y = batch(number)
    opt.zero_grad()
    (F.cross_entropy(net(x), y) + run.penalty()).backward()
    run.step(opt)


def of(net: nn.Module) -> list[StochasticGate]:
    return [gate for _, _, gate in gates(net) if isinstance(gate, StochasticGate)]


@pytest.mark.parametrize("at", ["units", "inputs", "weights"])
@pytest.mark.parametrize(
    "gate", [relax.HardConcrete(), relax.Concrete(), relax.RectifiedGaussian(), relax.StraightThroughBernoulli()]
)
@pytest.mark.parametrize("price", [pr.Budget(params=0.5), pr.Price(1e-3)])
def test_nothing_changes_at_first(at: str, gate: relax.Relaxation, price: Any) -> None:
    """To the bit, in train mode too, and with the gradients of all weights."""
    dense, (x, y) = seen(), batch()
    net = copy.deepcopy(dense)
    pr.attach(net, pr.L0(price=price, at=at, gate=gate), x[:2], steps=STEPS)
    for mode in (False, True):
        found = []
        for one in (dense, net):
            one.train(mode)
            one.zero_grad()
            out = one(x)
            F.cross_entropy(out, y).backward()
            found.append([out.detach(), *(p.grad for n, p in one.named_parameters() if "log_alpha" not in n)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(bool(gate.support().all()) for gate in of(net))


def test_the_gradient_of_a_silent_gate_is_that_of_its_multiplier() -> None:
    """Σ θ ∂L/∂θ over a unit's scale and shift, where the gate sits behind a norm."""
    net, _, _ = trained(pr.L0(price=pr.Budget(params=0.5), at="units:Conv2d"))
    x, y = batch()
    F.cross_entropy(net(x), y).backward()
    norm = net.norm1
    expected = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
    assert torch.allclose(of(net)[0].log_alpha.grad, expected.detach(), atol=1e-12)  # type: ignore[arg-type]


def test_gates_close_in_the_order_of_importance_per_cost() -> None:
    """Importance from a plain loop over the gradients; cost from closing one unit of a 6 → 9 → 7 → 3 network by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    method = pr.L0(price=pr.Budget(macs=0.5), start="trained")
    run = pr.attach(net, method, torch.randn(2, 6).double(), steps=1000)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1))
    squares = [torch.zeros(9).double(), torch.zeros(7).double()]
    for number in range(1, 31):
        torch.manual_seed(number)
        x = torch.randn(8, 6).double()
        opt.zero_grad()
        (net(x) ** 2).sum().backward()
        for square, layer in zip(squares, (net[0], net[2]), strict=True):
            slope = (layer.weight * layer.weight.grad).sum(1) + layer.bias * layer.bias.grad
            square += max(0.1, 1 / number) * (slope.detach() ** 2 - square)
        run.step(opt)
    sites, model = method.sites(net), attached(net).notes[method].model
    dense = 6 * 9 + 9 * 7 + 7 * 3
    scores = importance_per_cost(net, sites, model, ("macs",))
    for score, square, cost in zip(scores, squares, (6 + 7, 9 + 3), strict=True):
        assert torch.allclose(score, square * dense / cost, rtol=1e-9)
    flat = torch.cat(scores)
    while run.clock.step < 60:
        run.step(opt)  # no gradients any more: importance stands still
    closed = torch.cat([~gate.support() for gate in of(net)])
    assert 0 < int(closed.sum()) < 4
    assert flat[closed].max() <= flat[~closed].min(), "costs hardly change with the first gates"


def test_what_counts_as_trained() -> None:
    fresh = Chain()
    assert not is_trained(fresh)
    nn.init.uniform_(fresh.norm1.weight)
    assert not is_trained(fresh), "begun from random scales, as network slimming does"
    assert is_trained(seen())
    loaded = Chain()
    loaded.norm1.running_mean.fill_(0.1)  # type: ignore[union-attr]
    assert is_trained(loaded), "statistics from a file without a count"
    transformer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert not is_trained(transformer)
    with torch.no_grad():
        transformer[1].weight[0] += 0.01
    assert is_trained(transformer)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert not is_trained(plain), "there is no evidence, and nothing is guessed"


@pytest.mark.parametrize(
    ("method", "silent"),
    [
        (pr.L0(price=pr.Budget(params=0.5)), True),
        (pr.L0(price=1e-3), True),
        (pr.L0(price=pr.Budget(params=0.5), start="scratch"), False),
        (pr.L0(price=pr.Budget(params=0.5), keep=0.9), False),
        (pr.L0(price=pr.Budget(params=0.5), gate_lr=100), False),
    ],
)
def test_a_trained_network_is_begun_as_such_unless_told(method: L0, silent: bool) -> None:
    net, _, _ = trained(method)
    assert all(gate.silent == silent for gate in of(net))
    torch.manual_seed(0)
    fresh = Chain().double()
    pr.attach(fresh, method, batch()[0][:2], steps=STEPS)
    assert not any(gate.silent for gate in of(fresh))


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep=0.9, start='trained'\): gates of a trained network begin at one"):
        pr.L0(price=1e-3, keep=0.9, start="trained")
    with pytest.raises(ValueError, match=r"gates follow a schedule and no learning rate"):
        pr.L0(price=pr.Budget(macs=0.5), gate_lr=10, start="trained")
    with pytest.raises(ValueError, match="start"):
        pr.L0(price=1e-3, start="warm")  # type: ignore[arg-type]


def test_gates_are_held_after_a_quarter_and_show_one() -> None:
    net, run, opt = trained(pr.L0(price=pr.Budget(params=0.5)))
    for number in range(STEPS):
        step(net, run, opt, number)
        assert all(gate.frozen == (number + 1 >= 10) for gate in of(net))
        shown = torch.cat([gate().flatten() for gate in of(net)])
        assert bool(((shown == 1) | (shown == 0)).all())
    assert attached(net).said == []
    run.finish()


def test_with_a_price_gates_begin_to_draw_after_a_while() -> None:
    """The most important one from the highest log-alpha."""
    net, run, opt = trained(pr.L0(price=1e-3), lr=0.0)
    sites, model = run.method.sites(net), attached(net).notes[run.method].model  # type: ignore[attr-defined]
    step(net, run, opt, 0)
    assert not any(gate.silent for gate in of(net)), "3 % of 40 steps"
    score = torch.cat([s.flatten() for s in importance_per_cost(net, sites, model, ("parameters",))])
    values = torch.cat([gate.log_alpha.detach().flatten() for gate in of(net)])
    assert torch.equal(score.argsort(stable=True), values.argsort())
    low, high = (relax.HardConcrete().logits(keep) for keep in (0.9, 0.99))
    assert (float(values.min()), float(values.max())) == pytest.approx((low, high))
    assert run.penalty().item() > 0


@pytest.mark.parametrize("until", [4, 11, 12])
def test_a_run_goes_on_bit_for_bit_in_a_process_whose_network_shows_nothing(until: int) -> None:
    """In the middle of the schedule, and while the norms' statistics are made anew."""
    method = pr.L0(price=pr.Budget(params=0.5))
    net, run, opt = trained(method)
    for number in range(until):
        step(net, run, opt, number)
    saved = copy.deepcopy([net.state_dict(), run.state_dict(), opt.state_dict()])
    other, resumed, fresh_opt = trained(method, Chain().double())
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    fresh_opt.load_state_dict(saved[2])
    for number in range(until, STEPS):
        step(net, run, opt, number)
        step(other, resumed, fresh_opt, number)
    assert same_state(net.state_dict(), other.state_dict())


def test_statistics_are_made_anew_when_gates_are_held() -> None:
    """The first pass counts alone, the next ones by a half, a quarter, ... down to the norm's own momentum."""
    net, run, opt = trained(pr.L0(price=pr.Budget(params=0.5)))
    norm = net.norm1
    expected, momenta = None, []
    for number in range(17):
        if run.clock.step >= 10:
            before = norm.running_mean.clone()
            momentum = max(0.1, 0.5 ** (run.clock.step - 10))
            mean = net.conv1(batch(number)[0]).mean((0, 2, 3))
            expected = (1 - momentum) * before + momentum * mean
            momenta.append(norm.momentum)
        step(net, run, opt, number)
        if expected is not None:
            assert torch.allclose(norm.running_mean, expected.detach(), atol=1e-12)
    assert momenta == [1.0, 0.5, 0.25, 0.125, 0.1, 0.1, 0.1]
    assert not any(key.startswith("momentum") for key in attached(net).state.tensors)


@pytest.mark.filterwarnings("ignore:training ended at:paring.ParingWarning")
def test_norms_in_eval_mode_and_finished_ones_keep_what_they_had() -> None:
    net, run, opt = trained(pr.L0(price=pr.Budget(params=0.5)))
    norm = net.norm1.eval()
    before = norm.running_mean.clone()
    for number in range(12):
        step(net, run, opt, number)
        norm.eval()
    assert torch.equal(norm.running_mean, before)
    assert norm.momentum == 0.25
    small = run.finish()
    assert [m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1]


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3).double(), torch.zeros(2), torch.tensor([2.0, 0.0]).double(), torch.tensor([0.1, -1]).double()],
)
@pytest.mark.parametrize("name", ["norm1", "conv1", "nothing"])
def test_a_state_with_a_momentum_that_makes_no_sense_is_refused(name: str, wrong: Tensor) -> None:
    _, run, _ = trained(pr.L0(price=pr.Budget(params=0.5)))
    state = run.state_dict()
    state["state"]["tensors"][f"momentum of {name}"] = wrong
    with pytest.raises(ValueError, match="is no momentum of a norm with statistics"):
        run.load_state_dict(state)
