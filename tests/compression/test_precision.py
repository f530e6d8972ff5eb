"""Adaptive precision: the closed form against a solver, the numbers against a loop, the bound against the loss."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from paring.compression.objective import Objective
from paring.compression.precision import Step, adaptive_precision, fewest_bits, tolerances
from paring.core import Progress


@pytest.mark.parametrize("seed", range(6))
def test_tolerances_are_what_a_solver_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    g = np.abs(generator.normal(size=8)) ** 2
    g[0] = 0.0 if seed % 2 else g[0]
    delta, epsilon = 0.3, float(generator.uniform(0.01, 0.4))
    found = tolerances(torch.from_numpy(g), epsilon, delta).numpy()
    slope = g * delta / epsilon  # in units of Delta and of the budget; the solver sees logarithms, where all is smooth
    solved = minimize(
        lambda y: -y.sum(),
        np.full(8, np.log(min(1.0, 1 / slope.sum()) / 2)),
        jac=lambda y: -np.ones(8),
        bounds=[(-20.0, 0.0)] * 8,
        constraints=[
            {"type": "ineq", "fun": lambda y: 1 - slope @ np.exp(y), "jac": lambda y: -slope * np.exp(y)},
        ],
        method="SLSQP",
        options={"ftol": 1e-8, "maxiter": 500},
    )
    assert solved.success, solved.message
    assert np.log2(found).sum() == pytest.approx(np.log2(delta * np.exp(solved.x)).sum(), abs=1e-5)
    assert g @ found <= epsilon * (1 + 1e-12)
    assert (found <= delta).all()


def test_tolerances_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="positive"):
        tolerances(torch.ones(3), 0.0, 1.0)


def naive_fewest(value: float, tolerance: float) -> tuple[Fraction, int]:
    exact = Fraction(value)
    for n in itertools.count():
        near = Fraction(round(exact * 2**n), 2**n)
        if abs(near - exact) <= Fraction(tolerance):
            return near, n
    raise AssertionError


def test_fewest_bits_is_what_a_loop_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(300, generator=generator, dtype=torch.float64) * 2 - 1
    tolerance = 0.5 ** (torch.rand(300, generator=generator, dtype=torch.float64) * 12)
    found, width = fewest_bits(value, tolerance)
    for v, t, f, n in zip(value.tolist(), tolerance.tolist(), found.tolist(), width.tolist(), strict=True):
        assert (Fraction(f), n) == naive_fewest(v, t)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Objective]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    y = (x[:, :4].sum(1) > 0).long() + 2 * (x[:, 4] * x[:, 5] > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return net.eval(), Objective.of(F.cross_entropy, x, y, batch=100)


@pytest.mark.parametrize("slack", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("bold", [True, False])
def test_the_bound_is_kept_and_bits_fall(trained: tuple[nn.Module, Objective], slack: float, bold: bool) -> None:
    net, objective = trained
    before = copy.deepcopy(net.state_dict())
    seen: list[Step] = []
    small, steps = adaptive_precision(
        net, objective, slack=slack, bold=bold, rounds=20, watch=lambda p: seen.append(p.step)
    )
    assert objective(small) <= objective(net) + slack
    assert seen == steps
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    kept = [step.bits for step in steps if step.accepted]
    count = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    if slack:
        assert min(kept) < 16 * count
        assert any(not torch.equal(p, q) for p, q in zip(net.parameters(), small.parameters(), strict=True))


def test_retraining_lowers_the_bits(trained: tuple[nn.Module, Objective]) -> None:
    net, objective = trained

    def retrain(one: nn.Module) -> None:
        names = [name for name, _ in one.named_parameters()]
        for _ in range(5):
            grads = objective.gradient(one, names)
            with torch.no_grad():
                for name in names:
                    one.get_parameter(name).sub_(0.1 * grads[name])

    plain = adaptive_precision(net, objective, slack=0.01, rounds=20)[1]
    again = adaptive_precision(net, objective, slack=0.01, rounds=20, retrain=retrain)[1]
    assert min(s.bits for s in again if s.accepted) < min(s.bits for s in plain if s.accepted)


def test_interrupting_gives_the_best_so_far(trained: tuple[nn.Module, Objective]) -> None:
    net, objective = trained

    def stop(progress: Progress) -> None:
        assert (progress.done, progress.total) == (progress.step.number + 1, 40)
        if progress.step.number == 5:
            raise KeyboardInterrupt

    small, steps = adaptive_precision(net, objective, slack=0.05, watch=stop)
    assert len(steps) == 6
    assert objective(small) <= objective(net) + 0.05


def test_refuses_what_makes_no_sense(trained: tuple[nn.Module, Objective]) -> None:
    net, objective = trained
    with pytest.raises(ValueError, match="must not be negative"):
        adaptive_precision(net, objective, slack=-1.0)
    with pytest.raises(ValueError, match="no parameter"):
        adaptive_precision(net, objective, names=[])
    with pytest.raises(ValueError, match="loss of the network is nan"):
        adaptive_precision(net, Objective(lambda one, batch: torch.tensor(float("nan")), [0]))


def test_the_objective_is_the_mean_over_all_examples(trained: tuple[nn.Module, Objective]) -> None:
    net, _ = trained
    net = copy.deepcopy(net)
    x, y = torch.randn(7, 8), torch.randint(4, (7,))
    uneven = Objective.of(F.cross_entropy, x, y, batch=3)
    whole = F.cross_entropy(net(x), y)
    assert uneven(net) == pytest.approx(whole.item(), rel=1e-6)
    net[0].weight.requires_grad_(False)
    found: dict[str, Tensor] = uneven.gradient(net.train(), ["0.weight", "3.bias"])
    assert net.training
    assert not net[0].weight.requires_grad
    net.eval().requires_grad_(True)
    expected = torch.autograd.grad(F.cross_entropy(net(x), y), [net[0].weight, net[3].bias])
    for one, two in zip(found.values(), expected, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    curvature = uneven.curvature(net, ["3.bias"])["3.bias"]
    by_hand = sum(
        len(b) / 7 * torch.autograd.grad(F.cross_entropy(net(a), b), [net[3].bias])[0] ** 2
        for a, b in zip(x.split(3), y.split(3), strict=True)
    )
    assert torch.allclose(curvature, torch.as_tensor(by_hand), atol=1e-6)
    with pytest.raises(ValueError, match="has to be data"):
        Objective(lambda one, batch: torch.zeros(()), [])
