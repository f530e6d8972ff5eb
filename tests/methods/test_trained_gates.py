"""STR, sparse variational dropout, concrete dropout, supermask and edge-popup: what moves, what closes, what is charged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import gates
from paring.gates import GaussianGate
from paring.methods import STR, ConcreteDropout, EdgePopup, SparseVD, Supermask
from paring.testing import Chain, chain_batch, difference

pytestmark = [BY_HAND, CUT_SHORT]

BATCH = chain_batch(30, dtype=torch.float64)


def attached(method: pr.Method, decay: float = 1e-2, lr: float = 0.05) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Chain().double()
    run = pr.attach(net, method, BATCH[0][:2], steps=20, epoch_steps=5)
    return net, run, torch.optim.SGD(run.parameter_groups(lr=lr, weight_decay=decay), lr=lr, momentum=0.9)


def step(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer) -> None:
    opt.zero_grad()
    (F.cross_entropy(net(BATCH[0]), BATCH[1]) + run.penalty()).backward()
    run.step(opt)


def weight(net: nn.Module, name: str) -> Tensor:
    found = net.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found


def others(net: nn.Module) -> dict[str, Tensor]:
    """Parameters that are no gate's."""
    gated = {id(p) for _, _, gate in gates(net) for p in gate.parameters()}
    return {name: p for name, p in net.named_parameters() if id(p) not in gated}


def test_decay_alone_brings_far_thresholds_in() -> None:
    """At s = -3200 there is no gradient, and momentum SGD with decay d moves s by a recursion of two numbers."""
    method = STR(s_init=-3200)
    net, run, opt = attached(method, decay=0.5, lr=0.1)
    s, speed = -3200.0, 0.0
    for _ in range(5):
        step(net, run, opt)
        speed = 0.9 * speed + 0.5 * s
        s -= 0.1 * speed
    found = [p.item() for _, _, gate in gates(net) for p in gate.parameters()]
    assert found == pytest.approx([s] * 4, rel=1e-12)
    assert method.thresholds(net) == dict.fromkeys(("conv1", "conv2", "fc1", "fc2"), 0.0)


def test_thresholds_have_the_decay_of_the_weights() -> None:
    _, run, _ = attached(STR(s_init=-5, gate_lr=2.0))
    groups = {group["name"]: group for group in run.parameter_groups(lr=0.1, weight_decay=3e-3)}
    assert groups["gates"]["weight_decay"] == 3e-3
    assert groups["gates"]["lr"] == pytest.approx(0.2)
    assert len(groups["gates"]["params"]) == 4


def test_thresholds_that_nothing_moves_are_refused() -> None:
    net, run, opt = attached(STR(s_init=-3200), decay=0.0)
    with pytest.raises(
        ValueError, match="the threshold of 'conv1' has no gradient at s = -3200 and the optimizer gives it"
    ):
        step(net, run, opt)
    net, run, opt = attached(STR(s_init=-5), decay=0.0)
    step(net, run, opt)


def test_what_is_below_the_threshold_is_gone_at_the_end() -> None:
    method = STR(s_init=-3.0)
    net, run, opt = attached(method, decay=0.1)
    for _ in range(5):
        step(net, run, opt)
    wanted = {name: int((weight(net, name).detach().abs() > cut).sum()) for name, cut in method.thresholds(net).items()}
    assert {name: int(gate.support().sum()) for name, _, gate in gates(net)} == wanted
    assert 0 < wanted["fc1"] < weight(net, "fc1").numel()
    assert difference(run.finish(), net, BATCH[0]) < 1e-10


def test_the_kl_is_charged_and_warmed_up() -> None:
    method = SparseVD(rate=0.5, warmup=0.4, log_sigma2=-3.0)
    net, run, opt = attached(method)
    rates = []
    for _ in range(12):
        total = 0.0
        for name, _, gate in gates(net):
            assert isinstance(gate, GaussianGate)
            for s2, w in zip(gate.log_sigma2.flatten().tolist(), weight(net, name).flatten().tolist(), strict=True):
                a = min(max(s2 - math.log(w * w + 1e-8), -8.0), 8.0)
                total += 0.63576 / (1 + math.exp(1.87320 + 1.48695 * a)) + 0.5 * math.log(1 + math.exp(-a))
        rates.append(run.penalty().item() / total)
        step(net, run, opt)
    assert rates == pytest.approx([0.5 * min(1.0, t / 8) for t in range(12)], abs=1e-10)
    with pytest.raises(ValueError, match="is a fraction of training: tell attach how long"):
        pr.attach(Chain(), SparseVD(), chain_batch(2)[0])
    assert SparseVD(warmup=0).rate_at(pr.core.Clock()) == 1 / 60_000


def test_noise_closes_weights_that_the_loss_does_not_need() -> None:
    torch.manual_seed(0)
    net = Chain().double()
    run = pr.attach(net, SparseVD(rate=0.02, warmup=0), BATCH[0][:2], steps=40)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2, gate_lr=0.3))
    for _ in range(30):
        step(net, run, opt)
    for name, _, gate in gates(net):
        assert isinstance(gate, GaussianGate)
        log_alpha = gate.log_alpha(weight(net, name))
        assert torch.equal(gate.support(), log_alpha <= 3), "the copy of the weight is fresh"
    assert sum(int((~gate.support()).sum()) for _, _, gate in gates(net)) > 0
    small = run.finish()
    assert difference(small, net, BATCH[0]) < 1e-10


def test_what_concrete_dropout_charges() -> None:
    method = ConcreteDropout(examples=50, length=0.3, p=0.2, regression=True)
    net, run, _ = attached(method)
    entropy = 0.2 * math.log(0.2) + 0.8 * math.log(0.8)
    inputs = {"conv1": 2, "conv2": 6, "fc1": 32, "fc2": 10}
    wanted = 0.0
    for name, count in inputs.items():
        wanted += 0.3**2 / 50 * float((weight(net, name).detach() ** 2).sum()) / 0.8 + 2 / 50 * count * entropy
    assert run.penalty().item() == pytest.approx(wanted, rel=1e-6)
    assert method.probabilities(net) == pytest.approx(dict.fromkeys(inputs, 0.2))


def test_concrete_dropout_learns_its_rates_and_closes_nothing() -> None:
    method = ConcreteDropout(examples=20, gate_lr=10.0)
    net, run, opt = attached(method)
    for _ in range(5):
        step(net, run, opt)
    assert all(p != pytest.approx(0.1, abs=1e-3) for p in method.probabilities(net).values())
    small = run.finish()
    assert difference(small, net, BATCH[0]) < 1e-10
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in Chain().parameters())
    for name, value in others(net).items():
        assert torch.equal(small.get_parameter(name), value)


@pytest.mark.parametrize("method", [Supermask(gate_lr=100.0), EdgePopup(keep=0.3)], ids=["supermask", "edge popup"])
def test_only_masks_move(method: pr.Method) -> None:
    net, run, opt = attached(method, decay=0.1)
    start = {name: value.detach().clone() for name, value in others(net).items()}
    masks = [p.detach().clone() for _, _, gate in gates(net) for p in gate.parameters()]
    for _ in range(4):
        step(net, run, opt)
    assert all(torch.equal(value, start[name]) for name, value in others(net).items())
    moved = [p for _, _, gate in gates(net) for p in gate.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(masks, moved, strict=True))


def test_signed_constants() -> None:
    torch.manual_seed(0)
    given = Chain().double()
    for method, fan in (
        (Supermask(constant=True), lambda fan_in, fan_out: fan_in + fan_out),
        (EdgePopup(constant=True), lambda fan_in, fan_out: fan_in),
        (EdgePopup(constant=True, keep=0.3, scale_fan=True), lambda fan_in, fan_out: 0.3 * fan_in),
    ):
        net, _, _ = attached(method)
        for name, fans in {"conv1": (18, 54), "conv2": (54, 72), "fc1": (32, 10), "fc2": (10, 3)}.items():
            size = math.sqrt(2 / fan(*fans))
            assert torch.allclose(weight(net, name), weight(given, name).sign() * size, atol=1e-12)
        assert torch.equal(net.fc1.bias, given.fc1.bias)


def test_edge_popup_keeps_its_share_in_every_layer() -> None:
    net, run, opt = attached(EdgePopup(keep=0.3))
    for _ in range(3):
        step(net, run, opt)
        for _, _, gate in gates(net):
            assert int(gate.support().sum()) == round(0.3 * gate.support().numel())
    small = run.finish()
    assert difference(small, net, BATCH[0]) < 1e-10


def test_a_supermask_is_the_likelier_one_or_drawn_with_its_seed() -> None:
    found = {}
    for draw in (None, 1, 1, 2):
        net, run, opt = attached(Supermask(draw=draw, rescale=True), lr=20.0, decay=0.0)
        torch.manual_seed(7)
        for _ in range(3):
            step(net, run, opt)
        open_now = {name: gate.support() for name, _, gate in gates(net)}
        run.method.finish(net)
        chosen = torch.cat([gate.support().flatten() for _, _, gate in gates(net)])
        if draw is None:
            assert torch.equal(chosen, torch.cat([mask.flatten() for mask in open_now.values()]))
        elif draw in found:
            assert torch.equal(chosen, found[draw])
        found[draw] = chosen
    assert not torch.equal(found[1], found[2])
    assert not torch.equal(found[1], found[None])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: STR(s_init=math.nan), r"STR\(s_init=nan\): must be a finite number"),
        (lambda: STR(gate_lr=-1), r"STR\(gate_lr=-1\): must be a number that is not negative"),
        (lambda: SparseVD(rate=-1), r"SparseVD\(rate=-1\)"),
        (lambda: SparseVD(warmup=2), r"SparseVD\(warmup=2\): a fraction of training"),
        (lambda: SparseVD(threshold=9), r"SparseVD\(threshold=9\): must lie in \[-8, 8\)"),
        (lambda: ConcreteDropout(p=1.0), r"ConcreteDropout\(p=1.0\): must lie in \(0, 1\)"),
        (lambda: ConcreteDropout(examples=0), r"ConcreteDropout\(examples=0\): must be at least 1"),
        (lambda: ConcreteDropout(temperature=0), r"ConcreteDropout\(temperature=0\): must be a positive number"),
        (lambda: Supermask(gate_lr=-1), r"Supermask\(gate_lr=-1\)"),
        (lambda: EdgePopup(keep=0), r"EdgePopup\(keep=0\): must lie in \(0, 1\]"),
        (lambda: EdgePopup(scale_fan=True), r"give constant=True too"),
    ],
)
def test_refusals(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_padding_stays_without_noise() -> None:
    net = nn.Sequential(nn.Embedding(7, 5, padding_idx=2), nn.Flatten(), nn.Linear(15, 3))
    pr.attach(net, SparseVD(), torch.tensor([[0, 1, 2]]), steps=4)
    shown = net[0](torch.tensor([[2, 4, 2]]))
    assert not bool(shown[0, [0, 2]].any())
    assert bool((shown[0, 1] != net[0](torch.tensor([[2, 4, 2]]))[0, 1]).any())
