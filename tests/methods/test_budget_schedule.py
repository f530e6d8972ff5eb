"""A budget is approached on a schedule, whatever the length of training, the optimizer and its learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paring as pr
from paring.core import attached
from paring.gates import StochasticGate, support
from paring.gates.relax import Concrete, HardConcrete, RectifiedGaussian, Relaxation
from paring.methods.budget import edge
from paring.methods.trained_start import Course

ASKED = 0.25
UNIT = 0.026  # of the multiply-accumulates: what the dearest unit of `mlp` takes


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 6, generator=generator)
    return x, x[:, :4].argmax(1)


def sizes(
    method: pr.Method,
    steps: int,
    make: Callable[..., torch.optim.Optimizer],
    lr: float,
    *,
    trained: bool,
    quiet: bool = True,
) -> list[float]:
    """Shares of the dense multiply-accumulates that the support takes, before training and after every step."""
    torch.manual_seed(0)
    net = mlp()
    if trained:
        first = torch.optim.Adam(net.parameters(), lr=1e-2)
        for step in range(100):
            first.zero_grad()
            x, y = batch(step)
            F.cross_entropy(net(x), y).backward()
            first.step()
    run = pr.attach(net, method, batch(0)[0][:2], steps=steps)
    opt = make(run.parameter_groups(lr=lr), lr=lr)
    found, dense = [1.0], float(run.cost().macs)
    for step in range(steps):
        x, y = batch(step)
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
        found.append(float(run.cost(support).macs) / dense)
    run.finish()
    assert not quiet or attached(net).said == []
    return found


@pytest.mark.parametrize(
    ("steps", "make", "lr"),
    [
        *[(60, make, lr) for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) for lr in (1e-4, 1e-1)],
        *[(200, make, lr) for make, lr in ((torch.optim.SGD, 1e-1), (torch.optim.Adam, 1e-3))],
        (500, torch.optim.AdamW, 1e-2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trained", [False, True], ids=["scratch", "trained"])
def test_no_step_closes_much_and_the_budget_is_met_when_gates_are_held(
    steps: int, make: Callable[..., torch.optim.Optimizer], lr: float, trained: bool
) -> None:
    """Lost in one step: from scratch 0.02 and twice what an even schedule takes, trained 0.06 or what that takes; and a unit."""
    method = pr.L0(price=pr.Budget(macs=ASKED), start="trained" if trained else "scratch")
    found = sizes(method, steps, make, lr, trained=trained)
    held = round((0.25 if trained else 0.75) * steps)
    even = (1 - ASKED) / ((0.88 * held - 1) if trained else 0.7 * held)
    most = max(even, 0.06) if trained else 0.02 + 2 * even
    assert max(a - b for a, b in itertools.pairwise(found)) <= most + UNIT
    assert (1 - 0.05) * ASKED <= found[held - 1] <= (1 + 0.05) * ASKED
    assert found[held] == found[-1] <= ASKED
    assert found[held // 2] > 0.3, "and not long before"


def test_an_explicit_learning_rate_is_the_optimizers() -> None:
    """With `gate_lr` gates move with the weights' optimizer, as before; without, no learning rate moves them."""
    for gate_lr, moved in ((10.0, True), (None, False)):
        torch.manual_seed(0)
        net = mlp()
        run = pr.attach(net, pr.L0(price=pr.Budget(macs=ASKED), gate_lr=gate_lr, keep=0.5), batch(0)[0], steps=1000)
        ends = []
        for rate in (0.0, 0.5):
            twin = pr.attach(other := mlp(), run.method, batch(0)[0], steps=1000)
            other.load_state_dict(net.state_dict())
            opt = torch.optim.SGD(twin.parameter_groups(lr=0.0, gate_lr=rate), lr=0.0)
            for step in range(3):
                torch.manual_seed(step)
                opt.zero_grad()
                F.cross_entropy(other(batch(step)[0]), batch(step)[1]).backward()
                twin.step(opt)
            ends.append([p.detach().clone() for n, p in other.named_parameters() if "log_alpha" in n])
        assert any(not torch.equal(a, b) for a, b in zip(*ends, strict=True)) == moved


def test_a_gate_steps_as_adam_does_without_a_learning_rate() -> None:
    """Against a plain loop over the gradients, in float64."""
    gate = StochasticGate(HardConcrete(clamp=None), (5,), dtype=torch.float64)
    gate.keep_slopes()
    torch.manual_seed(0)
    value, mean, square = gate.log_alpha.detach().clone(), torch.zeros(5), torch.zeros(5)
    for step in range(1, 31):
        gradient = torch.randn(5, dtype=torch.float64)
        gate.log_alpha.grad = gradient.clone()
        gate.feel()
        assert not gate.log_alpha.grad.any(), "no optimizer sees it"
        weight = max(0.1, 1 / step)
        gate.follow(weight)
        gate.move(0.3)
        mean = mean + weight * (gradient - mean)
        square = square + weight * (gradient**2 - square)
        value = value - 0.3 * mean / square.sqrt()
        assert torch.allclose(gate.log_alpha.detach(), value, rtol=0, atol=1e-9)
    gate.log_alpha.grad = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 0.0], dtype=torch.float64)
    gate.feel()
    gate.follow(0.1)
    gate.move(0.3)
    assert bool(gate.log_alpha.isfinite().all()), "a step that a gradient scaler skips moves nothing to nowhere"


@pytest.mark.parametrize("relaxation", [HardConcrete(), HardConcrete(test="median"), Concrete(), RectifiedGaussian()])
def test_the_edge_is_where_a_gate_closes(relaxation: Relaxation) -> None:
    at = torch.tensor([edge(relaxation) - 1e-6, edge(relaxation) + 1e-6], dtype=torch.float64)
    assert (relaxation.estimate(at) != 0).tolist() == [False, True]


def test_a_course_is_dense_at_first_and_at_its_end_as_asked() -> None:
    course = Course(10, 110)
    assert [course.done(step) for step in (0, 10, 60, 110, 500)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert sum(course.looks(step) for step in range(111)) == 50
    assert course.looks(110)
    assert all(Course(2, 9).looks(step) for step in range(3, 12))
    assert pr.Budget(macs=0.25, params=0.5).at(0.5) == pr.Budget(macs=0.625, params=0.75)


def test_what_closes_in_one_blow_on_a_short_schedule_is_said() -> None:
    method = pr.L0(price=pr.Budget(macs=0.2), start="trained")
    with pytest.warns(
        pr.ParingWarning, match="closed gates in one blow at step .*Train for more steps, or change hold"
    ):
        sizes(method, 16, torch.optim.SGD, 0.1, trained=True, quiet=False)
