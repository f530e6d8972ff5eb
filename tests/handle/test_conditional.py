"""Conditional computation: the same outputs, gradients and training as the whole network."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND
from paring.core import gates
from paring.gates import StochasticGate

pytestmark = BY_HAND


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 2, padding=1, bias=False), nn.MaxPool2d(3), nn.SiLU(),
        nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


class Branches(nn.Module):
    """One layer read twice, two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(48, 16), nn.Linear(16, 8), nn.Linear(16, 6)
        self.out = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x.flatten(1)))
        return self.out(torch.cat([torch.relu(self.b(h)), torch.tanh(self.c(h))], 1))


CASES: list[tuple[Callable[[], nn.Module], Any]] = [
    (mlp, "units"),
    (mlp, "inputs"),
    (mlp, ("units:1", "inputs:3|5")),
    (lenet, "units"),
    (lenet, ("units:Conv2d", "inputs:Linear")),
    (Branches, "units"),
    (Branches, "inputs"),
]
IMAGE = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, 4, 4, generator=IMAGE, dtype=torch.float64)
Y = torch.randint(4, (40,), generator=IMAGE)


def attach(make: Callable[[], nn.Module], at: Any, **more: Any) -> tuple[nn.Module, pr.Run]:
    torch.manual_seed(0)
    net = make().double()
    run = pr.attach(net, pr.L0(price=1e-3, at=at, keep=0.3, **more), X[:2], steps=60, epoch_steps=10)
    return net, run


def train(net: nn.Module, run: pr.Run, forward: Callable[[Tensor], Tensor], steps: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.05), momentum=0.9)
    net.train()
    for _ in range(steps):
        opt.zero_grad()
        (F.cross_entropy(forward(X), Y) + run.penalty()).backward()
        run.step(opt)
    return net.state_dict()


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(("make", "at"), CASES, ids=[f"{m.__name__}-{a}" for m, a in CASES])
def test_trains_like_the_whole_network(make: Callable[[], nn.Module], at: Any, multiple: int) -> None:
    net, run = attach(make, at)
    whole = train(net, run, net, 60)
    other, other_run = attach(make, at)
    part = train(other, other_run, other_run.conditional(multiple), 60)
    for name, value in whole.items():
        assert torch.allclose(value, part[name], rtol=0, atol=1e-10), name


def test_closed_units_are_not_computed() -> None:
    net, run = attach(lenet, "units")
    seen: list[tuple[int, ...]] = []
    forward = run.conditional(1)
    with torch.no_grad():
        for number, (_, _, gate) in enumerate(gates(net)):
            assert isinstance(gate, StochasticGate)
            gate.log_alpha.fill_(9.0)
            gate.log_alpha[: 3 + number] = -1e4  # sigmoid of it is exactly zero
    net.train()
    original = F.conv2d

    def spy(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(tuple(weight.shape))
        return original(x, weight, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", spy)
        part = forward(X)
    assert seen == [(5, 3, 3, 3), (8, 5, 2, 2)]
    assert torch.allclose(part, net(X), atol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", spy)
        run.conditional(4)(X)
    assert seen[2:][-2:] == [(8, 3, 3, 3), (8, 8, 2, 2)]


def test_a_layer_that_closes_whole() -> None:
    net, run = attach(lenet, "units")
    forward = run.conditional(4)
    with torch.no_grad():
        for _, _, gate in gates(net):
            assert isinstance(gate, StochasticGate)
            gate.log_alpha.fill_(-1e4)
    net.train()
    out = forward(X)
    assert torch.allclose(out, net(X), atol=1e-12)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_whole_in_eval_mode_and_when_held() -> None:
    net, run = attach(mlp, "units", hold=0.5)
    forward = run.conditional()
    net.eval()
    assert torch.equal(forward(X), net(X))
    train(net, run, forward, 40)
    assert all(gate.frozen for _, _, gate in gates(net))
    assert torch.equal(forward(X), net.train()(X))


def test_goes_on_after_a_cut() -> None:
    results = []
    for conditional in (False, True):
        torch.manual_seed(0)
        net = lenet().double()
        method = pr.Stack(
            pr.L0(price=5e-3, at="units:Conv2d", keep=0.3, hold=0.6),
            pr.L0(price=1e-4, at="inputs:Linear", keep=0.5),
            pr.Shrink(every=5, multiple_of=1, saving=0.0, measure=False),
        )
        run = pr.attach(net, method, X[:2], steps=60, epoch_steps=10)
        results.append(train(net, run, run.conditional(1) if conditional else net, 60))
        assert any(record["done"] for record in run.shrinks)
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], rtol=0, atol=1e-10), name


class Sizes(nn.Module):
    """Its forward knows how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).reshape(len(x), 8 * 4))


def test_what_cannot_be_left_out_is_refused() -> None:
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).double()
    run = pr.attach(normed, pr.L0(at="units"), X[:2])
    with pytest.raises(ValueError, match="no BatchNorm behind"):
        run.conditional()
    sizes = Sizes().double()
    run = pr.attach(sizes, pr.L0(at="units:a"), X[:2])
    with pytest.raises(ValueError, match="needs its full sizes"):
        run.conditional()
    _, run = attach(mlp, "units", per_example=True)
    with pytest.raises(ValueError, match="one sample per minibatch"):
        run.conditional()
    _, run = attach(mlp, "units")
    with pytest.raises(ValueError, match="at least 1"):
        run.conditional(0)


def test_leaves_no_trace() -> None:
    net, run = attach(lenet, "units")
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    state = torch.get_rng_state()
    forward = run.conditional()
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in net.modules()] == modes
    forward(X)
    with pytest.raises(RuntimeError):
        forward(X[:, :2])
    pickle.loads(pickle.dumps(net))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net(X).shape == (40, 4)
