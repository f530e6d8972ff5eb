"""A budget: what is asked is what comes out, and not a gate less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from marks import CUT_SHORT
from paring.core import attached, gates
from paring.cost import CostModel
from paring.gates import MaskGate, Site, StochasticGate, support
from paring.methods.l0 import L0

pytestmark = CUT_SHORT

X = torch.randn(2, 6)


def multiplier(net: nn.Module, cost: str, places: str = "units") -> float:
    """0 before it first moved."""
    return float(attached(net).state.multipliers.get(places, {}).get(cost, 0.0))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def prepared(
    budget: pr.Budget, seed: int = 0, steps: int | None = None, gate_lr: float | None = None
) -> tuple[nn.Module, pr.Run]:
    """A network whose gates are likely in a random order."""
    torch.manual_seed(seed)
    net = mlp()
    run = pr.attach(net, pr.L0(price=budget, at="units", gate_lr=gate_lr), X, steps=steps)
    for gate in gates_of(net):
        gate.log_alpha.data.normal_()
    return net, run


def gates_of(net: nn.Module) -> list[StochasticGate]:
    return [gate for _, _, gate in gates(net) if isinstance(gate, StochasticGate)]


def spent(run: pr.Run, budget: pr.Budget) -> float:
    """The largest share of any asked size that the present support takes, counted by hand: 6 -> a -> b -> 3 units."""
    a, b = (int(gate.support().sum()) for gate in gates_of(run.net))
    macs, dense = 6 * a + a * b + 3 * b, 6 * 9 + 9 * 7 + 3 * 7
    found = run.cost(support)
    assert (float(found.macs), float(found.parameters)) == (macs, macs + a + b + 3)
    shares = {"macs": macs / dense, "parameters": (macs + a + b + 3) / (dense + 9 + 7 + 3)}
    return max(shares[name] / asked for name, asked in budget.targets.items())


def closed(net: nn.Module) -> Iterator[tuple[Tensor, int]]:
    for gate in gates_of(net):
        for unit in (~gate.support()).nonzero().flatten().tolist():
            yield gate.log_alpha.data, unit


@pytest.mark.parametrize("budget", [pr.Budget(macs=0.5), pr.Budget(params=0.3), pr.Budget(macs=0.7, params=0.4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_not_a_gate_more_fits_and_the_likeliest_are_open(budget: pr.Budget, seed: int) -> None:
    net, run = prepared(budget, seed)
    before = [gate.log_alpha.detach().clone() for gate in gates_of(net)]
    run.method.finish(net)
    assert spent(run, budget) <= 1
    for gate, old in zip(gates_of(net), before, strict=True):
        assert old[gate.support()].min() > old[~gate.support()].max(), "in one place the likeliest are open"
        assert bool(gate.support().any())
    for values, unit in closed(net):
        was = values[unit].item()
        values[unit] = 4.0
        assert spent(run, budget) > 1
        values[unit] = was


def test_what_just_fits_is_taken() -> None:
    budget = pr.Budget(macs=(6 * 5 + 5 * 4 + 3 * 4) / (6 * 9 + 9 * 7 + 3 * 7))
    net, run = prepared(budget)
    with torch.no_grad():
        for gate, left in zip(gates_of(net), (5, 4), strict=True):
            gate.log_alpha.copy_(torch.where(torch.arange(len(gate.log_alpha)) < left, 3.0, -3.0))
    run.method.finish(net)
    assert [int(gate.support().sum()) for gate in gates_of(net)] == [5, 4]
    assert spent(run, budget) == pytest.approx(1.0)


def test_closed_for_good_and_opened_again() -> None:
    """A gate that has to open though it was closed begins at sigma(log alpha) = 3/4; what is closed is zero in every relaxation."""
    net, run = prepared(pr.Budget(macs=1.0))
    for gate in gates_of(net):
        gate.log_alpha.data.fill_(-6.0)
    run.method.finish(net)
    for gate in gates_of(net):
        assert torch.allclose(torch.sigmoid(gate.log_alpha), torch.tensor(0.75), atol=1e-5)
        assert bool(gate.support().all())
    net, run = prepared(pr.Budget(macs=0.3))
    run.method.finish(net)
    assert all(float(values[unit]) <= -1e3 and torch.sigmoid(values[unit]) == 0 for values, unit in closed(net))


@pytest.mark.parametrize(("steps", "held"), [(8, 6), (40, 30)])
def test_the_last_quarter_of_training_is_held_unless_told(steps: int, held: int) -> None:
    net, run = prepared(pr.Budget(macs=0.5), steps=steps)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    for step in range(1, steps + 1):
        net(X).sum().backward()
        run.step(opt)
        assert all(gate.frozen for gate in gates_of(net)) == (step >= held)
    assert L0(price=1e-3).holding == 0
    assert L0(price=pr.Budget(macs=0.5), hold=0.1).holding == 0.1


def test_the_multiplier_looks_every_tenth_step() -> None:
    net, run = prepared(pr.Budget(macs=0.2, ascent=3.0), steps=1000, gate_lr=10.0)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    seen = []
    for gate in gates_of(net):
        gate.log_alpha.data.fill_(4.0)
    for _ in range(21):
        run.step(opt)
        seen.append(multiplier(net, "macs"))
    assert seen[:9] == [0.0] * 9
    assert seen[9:19] == pytest.approx([10 * 3 / 1000 * 0.8] * 10, rel=1e-5)
    assert seen[19] == pytest.approx(2 * seen[9], rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"params": 0.0}, {"macs": 1.01}, {"params": 0.5, "ascent": 0.0}, {"params": 0.5, "ascent": float("inf")},
     {"macs": 0.5, "multiple_of": 0}, {"macs": 0.5, "multiple_of": 1.5}, {"macs": 0.5, "multiple_of": True}],
)  # fmt: skip
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Budget"):
        pr.Budget(**wrong)  # type: ignore[arg-type]


def test_the_penalty_is_the_multiplier_times_what_is_expected_too_much() -> None:
    net, run = prepared(pr.Budget(macs=0.4, params=0.9))
    assert float(run.penalty()) == 0
    attached(net).state.multipliers["units"] = {"macs": torch.tensor(3.0), "parameters": torch.tensor(0.0)}
    a, b = (float(gate.prob_open().detach().sum()) for gate in gates_of(net))
    penalty = run.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(3 * ((6 * a + a * b + 3 * b) / (6 * 9 + 9 * 7 + 3 * 7) - 0.4), rel=1e-5)
    penalty.backward()
    assert all(bool((gate.log_alpha.grad > 0).all()) for gate in gates_of(net))


def test_rounded_widths_are_filled_only_by_whole_blocks_or_whole_layers() -> None:
    for seed in range(3):
        budget = pr.Budget(macs=0.6, multiple_of=4)
        net, run = prepared(budget, seed)
        run.method.finish(net)
        widths = [int(gate.support().sum()) for gate in gates_of(net)]
        assert all(
            width % 4 == 0 or width == len(gate.log_alpha) for width, gate in zip(widths, gates_of(net), strict=True)
        )
        assert spent(run, budget) <= 1


def test_without_a_known_end_the_multiplier_rises_as_in_twenty_thousand_steps() -> None:
    net, run = prepared(pr.Budget(macs=0.5, ascent=4.0), gate_lr=10.0)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    for gate in gates_of(net):
        gate.log_alpha.data.fill_(4.0)
    for _ in range(10):
        run.step(opt)
    assert multiplier(net, "macs") == pytest.approx(10 * 4 / 20_000 * 0.5, rel=1e-5)


def attached_once(at: str) -> tuple[nn.Module, Sequence[Site], CostModel]:
    torch.manual_seed(0)
    net = mlp()
    run = pr.attach(net, pr.L0(price=1.0, at=at), X)
    notes = attached(net).notes[run.method]
    return net, notes.sites, notes.model


def projected(net: nn.Module, sites: Sequence[Site], model: CostModel, budget: pr.Budget, seed: int) -> list[int]:
    """Open gates in each place after a projection onto `budget` from random log-alphas; the likeliest ones are open."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gates_of(net):
        gate.log_alpha.data.normal_(generator=generator)
    old = [gate.log_alpha.detach().clone() for gate in gates_of(net)]
    was = [gate.support() for gate in gates_of(net)]
    budget.project(net, sites, model)
    for gate, before, open_before in zip(gates_of(net), old, was, strict=True):
        stay, closed = gate.support() & open_before, ~gate.support() & ~gate.permanently_closed()
        assert torch.equal(gate.log_alpha[stay], before[stay]), "what is open and stays open does not move"
        assert not bool(closed.any()) or before[gate.support()].min() > before[closed].max()
    assert max(budget.shares(net, model)[name] / asked for name, asked in budget.targets.items()) <= 1
    return [int(gate.support().sum()) for gate in gates_of(net)]


@pytest.mark.parametrize("block", [1, 2, 4])
def test_not_a_block_more_fits(block: int) -> None:
    net, sites, model = attached_once("units")
    dense, full = 6 * 9 + 9 * 7 + 3 * 7, (9, 7)
    for number, asked in enumerate((0.42, 0.5, 0.55, 0.62, 0.7, 0.78, 0.85, 0.95, 1.0)):
        widths = projected(net, sites, model, pr.Budget(macs=asked, multiple_of=block), number)
        assert all(n % block == 0 or n == most for n, most in zip(widths, full, strict=True))
        for place, most in enumerate(full):
            a, b = (min(n + block, most) if k == place else n for k, n in enumerate(widths))
            assert [a, b] == widths or 6 * a + a * b + 3 * b > asked * dense


def test_blocks_are_of_units_and_not_of_inputs() -> None:
    net, sites, model = attached_once("inputs")
    budget = pr.Budget(macs=0.5, multiple_of=4)
    widths = projected(net, sites, model, budget, 0)
    assert widths == projected(net, sites, model, pr.Budget(macs=0.5), 0)
    assert any(n % 4 and n < most for n, most in zip(widths, (6, 9, 7), strict=True))


def test_what_is_closed_for_good_is_not_opened_again_and_completes_a_block() -> None:
    net, sites, model = attached_once("units")
    first = gates_of(net)[0]
    first.may_retire()
    assert first.retired is not None
    first.retired[:2] = True
    assert projected(net, sites, model, pr.Budget(macs=1.0, multiple_of=4), 0) == [7, 7]
    assert not bool(first.support()[:2].any())


@pytest.mark.parametrize(
    ("block", "a", "b", "what"),
    [(1, 1, 1, "one open gate"), (4, 4, 4, "one block of 4 open gates"), (8, 8, 7, "one block of 8")],
)
def test_the_least_is_one_block_in_every_place(block: int, a: int, b: int, what: str) -> None:
    net, sites, model = attached_once("units")
    least = (6 * a + a * b + 3 * b) / (6 * 9 + 9 * 7 + 3 * 7)
    assert pr.Budget(macs=1.0, multiple_of=block).least(net, sites, model) == {"macs": pytest.approx(least)}
    assert pr.Budget(macs=1.0).shares(net, model)["macs"] <= 1
    pr.Budget(macs=least + 1e-6, multiple_of=block).check(net, sites, model)
    budget = pr.Budget(macs=0.8 * least, multiple_of=block)
    with pytest.raises(ValueError, match=rf"{what} .*in each of the 2 .* cost 1.25 times .*about macs {least:.3g}\)"):
        budget.check(net, sites, model)
    with pytest.raises(ValueError, match=rf"{what} .*in each of the 2 gated places already costs 1.25 times"):
        budget.project(net, sites, model)


def test_a_budget_takes_whole_numbers_and_the_dense_size() -> None:
    budget = pr.Budget(params=1, macs=0.5, ascent=2, multiple_of=4.0)  # type: ignore[arg-type]
    assert (
        repr(budget) == "Budget(params=1.0, macs=0.5, latency=None, bytes=None, memory=None, ascent=2.0, multiple_of=4)"
    )
    assert budget.targets == {"parameters": 1.0, "macs": 0.5}


def test_the_multiplier_rises_with_the_excess_and_falls_to_zero_when_the_support_fits() -> None:
    net, _, model = attached_once("units")
    budget, duals = pr.Budget(macs=0.5, params=0.9), attached(net)
    assert budget.penalty(net, model, duals, "a") is None
    for gate in gates_of(net):
        gate.log_alpha.data.fill_(4.0)
    for step in (0, 5, 10):
        budget.ascend(net, model, duals, "a", step, 100)
    now = {name: multiplier(net, name, "a") for name in budget.targets}
    assert now == {"macs": pytest.approx(2 * 10 * 50 / 100 * 0.5), "parameters": pytest.approx(2 * 10 * 50 / 100 * 0.1)}
    assert budget.penalty(net, model, duals, "another one") is None
    gates_of(net)[0].log_alpha.data[2:] = -6.0
    budget.ascend(net, model, duals, "a", 20, 100)
    assert {multiplier(net, name, "a") for name in budget.targets} == {0.0}
    assert budget.penalty(net, model, duals, "a") is None


def test_only_stochastic_gates_are_ranked() -> None:
    net, sites, model = attached_once("units")
    net[0].unit_gate = MaskGate((9,))
    with pytest.raises(TypeError, match="MaskGate has none"):
        pr.Budget(macs=0.5).project(net, sites, model)
