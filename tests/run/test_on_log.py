"""What happens goes to any logger."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring.core import attached
from paring.gates import expected, support
from paring.testing import Chain, chain_batch

pytestmark = CUT_SHORT
Told = list[tuple[dict[str, float], int]]


def trained(method: pr.Method, steps: int, every: int, rounds: int = 1) -> tuple[pr.Run, Told]:
    torch.manual_seed(0)
    net, (x, y) = Chain(), chain_batch()
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    run = pr.attach(net, method, x[:2], optimizer=opt, steps=steps)
    told: Told = []
    run.on_log(lambda values, step: told.append((values, step)), every=every)
    for _ in range(rounds):
        while run.clock.step < steps:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
        run.next_round(opt)
    return run, told


def test_the_values_are_those_of_the_run() -> None:
    run, told = trained(pr.L0(price=pr.Budget(params=0.4), hold=0.2), 40, 10)
    assert [step for _, step in told] == [10, 20, 30, 40]
    values, dense = told[-1][0], run.cost()
    assert set(values) == {
        f"paring/{name}"
        for name in (
            *("round", "parameters", "cuts", "penalty", "multiplier_parameters"),
            *(f"{ask}_{what}" for ask in ("support", "expected") for what in ("parameters", "macs")),
        )
    }
    assert all(isinstance(value, float) for values, _ in told for value in values.values())
    for name, ask in (("support", support), ("expected", expected)):
        now = run.cost(ask)
        assert values[f"paring/{name}_macs"] == pytest.approx(float(now.macs) / float(dense.macs))
        assert values[f"paring/{name}_parameters"] == pytest.approx(float(now.parameters) / float(dense.parameters))
    multiplier = attached(run.net).state.multipliers["units"]["parameters"]
    assert values["paring/multiplier_parameters"] == float(multiplier)
    assert any(values["paring/multiplier_parameters"] > 0 for values, _ in told)
    assert any(values["paring/penalty"] > 0 for values, _ in told)


def test_cuts_and_rounds() -> None:
    shrinking = pr.Stack(pr.L0(price=pr.Budget(params=0.4), hold=0.5), pr.Shrink(every=2, multiple_of=1, measure=False))
    run, told = trained(shrinking, 12, 3)
    assert next(values["paring/cuts"] for values, _ in told) == 0
    assert told[-1][0]["paring/cuts"] == sum(record["done"] for record in run.shrinks) > 0
    assert told[-1][0]["paring/parameters"] < told[0][0]["paring/parameters"]
    _, told = trained(pr.IMP(prunings=1, rate=0.5), 4, 2, rounds=2)
    assert [(step, values["paring/round"]) for values, step in told] == [(2, 0), (4, 0), (6, 1), (8, 1)]


def test_a_network_that_cannot_be_captured_has_no_costs() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fc(x)
            return y if float(y.detach().sum()) > 0 else -y

    net = Odd()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    run = pr.attach(net, pr.Dense(), torch.ones(2, 3), optimizer=opt)
    told: Told = []
    run.on_log(lambda values, step: told.append((values, step)), every=1)
    net(torch.ones(2, 3)).sum().backward()
    opt.step()
    assert told == [({"paring/round": 0.0, "paring/parameters": 12.0, "paring/cuts": 0.0, "paring/penalty": 0.0}, 1)]


def test_what_is_refused_and_what_is_not_pickled() -> None:
    run, _ = trained(pr.L0(price=1e-3), 2, 1)
    for every in (0, -1, 1.5):
        with pytest.raises(ValueError, match="on_log"):
            run.on_log(print, every=every)  # type: ignore[arg-type]
    _, again = pickle.loads(pickle.dumps((run.net, run)))
    assert again._logs == []
