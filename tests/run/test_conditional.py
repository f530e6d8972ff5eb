"""Conditional computation: the same outputs, gradients and training as the whole network."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND
from paring.core import gates
from paring.gates import StochasticGate
from paring.run.conditional import Conditional

pytestmark = BY_HAND


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 2, padding=1, bias=False), nn.MaxPool2d(3), nn.SiLU(),
        nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def normed() -> nn.Module:
    """What is behind a norm stays whole."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)
    )


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
    (normed, "inputs:4|6"),
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


@cache
def trained_whole(make: Callable[[], nn.Module], at: Any) -> dict[str, Tensor]:
    """The naive twin, for every multiple."""
    net, run = attach(make, at)
    return train(net, run, net, 30)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(("make", "at"), CASES, ids=[f"{m.__name__}-{a}" for m, a in CASES])
def test_trains_like_the_whole_network(make: Callable[[], nn.Module], at: Any, multiple: int) -> None:
    net, run = attach(make, at)
    part = train(net, run, run.conditional(multiple), 30)
    for name, value in trained_whole(make, at).items():
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditional, "run", None)  # no part is computed
        assert torch.equal(forward(X), net(X))
    train(net, run, forward, 40)
    assert all(gate.frozen for _, _, gate in gates(net))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditional, "run", None)
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


def computed(
    net: nn.Module, at: Any, x: Tensor, closed: dict[str, list[int]], multiple: int = 1, **more: Any
) -> list[tuple[int, ...]]:
    """Weights that one step computes with when these gates ("units:0": entries) are closed, by what is called.

    Output and gradients have to be those of the whole network.
    """
    torch.manual_seed(0)
    net = net.double()
    run = pr.attach(net, pr.L0(price=1e-3, at=at, **more) if not isinstance(at, pr.Method) else at, x)
    with torch.no_grad():
        for name, kind, gate in gates(net):
            assert isinstance(gate, StochasticGate)
            gate.log_alpha.fill_(9.0)
            gate.log_alpha[closed.get(f"{kind}:{name}", [])] = -1e4  # sigmoid of it is exactly zero
    forward, results, seen = run.conditional(multiple), [], list[tuple[int, ...]]()
    linear, conv2d = F.linear, F.conv2d
    net.train()
    for call in (net, forward):
        seen.clear()
        torch.manual_seed(3)
        net.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                F, "linear", lambda x, weight, *rest: (seen.append(tuple(weight.shape)), linear(x, weight, *rest))[1]
            )
            patch.setattr(
                F, "conv2d", lambda x, weight, *rest: (seen.append(tuple(weight.shape)), conv2d(x, weight, *rest))[1]
            )
            out = call(x)
        out.square().sum().backward()
        results.append((out.detach(), {name: p.grad for name, p in net.named_parameters()}))
    (whole, wanted), (part, found) = results
    assert torch.allclose(whole, part, rtol=0, atol=1e-10)
    for name, grad in wanted.items():
        assert torch.allclose(
            torch.zeros(()) if grad is None else grad, found[name] if grad is not None else torch.zeros(())
        )
    return seen


def dense(*widths: int, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after, bias), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


ROWS = torch.randn(5, 4, generator=IMAGE, dtype=torch.float64)
PLANES = torch.randn(5, 3, 4, 4, generator=IMAGE, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_closed_units_and_columns_that_read_them_are_left_out(bias: bool) -> None:
    closed = {"units:0": [1, 2, 5], "units:2": [0]}
    assert computed(dense(4, 6, 5, 2, bias=bias), "units", ROWS, closed, 4) == [(3, 4), (4, 3), (2, 4)]
    assert computed(dense(4, 6, 2, bias=bias), "units", ROWS, {}) == [(6, 4), (2, 6)]
    assert computed(dense(4, 6, 2, bias=bias), "units", ROWS, {"units:0": [*range(6)]}, 4) == [(1, 4), (2, 1)]


def test_units_are_left_out_when_nobody_reads_them_in_this_step() -> None:
    closed = {"inputs:2": [0, 3], "inputs:4": [4], "inputs:0": [1]}
    assert computed(dense(4, 6, 5, 2), "inputs", ROWS, closed) == [(4, 4), (4, 4), (2, 4)]
    closed = {"inputs:2": [0, 3], "units:0": [3, 4]}
    assert computed(dense(4, 6, 5), ("units:0", "inputs:2"), ROWS, closed) == [(3, 4), (5, 3)]


class Two(nn.Module):
    """Two layers read one, and a sum ties two others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        return self.o(self.b(h) + self.c(h))


def test_units_that_one_of_two_readers_reads_are_computed() -> None:
    closed = {"inputs:b": [0, 1, 2], "inputs:c": [1, 2, 3]}
    assert computed(Two(), "inputs:b|c", ROWS, closed) == [(4, 4), (3, 4), (3, 4), (2, 3)]


@pytest.mark.parametrize(("multiple", "width"), [(1, 5), (3, 6), (5, 5)])
def test_widths_of_convolutions_are_rounded_up(multiple: int, width: int) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 2, 1))

    for closed, left in ([1, 4, 6], width), ([*range(8)], multiple):
        seen = computed(net(), "units:0", PLANES, {"units:0": closed}, multiple)
        assert seen == [(left, 3, 1, 1), (2, left, 1, 1)]


def test_layers_beside_norms_groups_and_gates_on_weights_stay_whole() -> None:
    def head(width: int) -> list[nn.Module]:
        return [nn.Flatten(), nn.Linear(16 * width, 5), nn.Tanh(), nn.Linear(5, 2)]

    normed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *head(4))
    assert computed(normed, "units:0|3", PLANES, {"units:0": [0], "units:3": [0, 1]}) == [(4, 3, 1, 1), (3, 64), (2, 3)]
    grouped = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Tanh(), *head(4))
    closed = {"units:0": [0], "units:1": [1], "units:4": [0, 1]}
    assert computed(grouped, "units:0|1|4", PLANES, closed) == [(4, 3, 1, 1), (4, 2, 1, 1), (3, 64), (2, 3)]
    method = pr.Stack(pr.L0(price=1e-3, at="units:0|2|4"), pr.L0(price=1e-3, at="weights:2"))
    closed = {"units:0": [0], "units:2": [1], "units:4": [0, 1]}
    assert computed(dense(4, 6, 5, 4, 2), method, ROWS, closed) == [(6, 4), (5, 6), (2, 5), (2, 2)]
