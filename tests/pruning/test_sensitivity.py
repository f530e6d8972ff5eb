"""`sensitivity`: the losses are those of networks with the units really gone, and the network stays as it is."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import Progress
from paring.pruning import Magnitude, Search, Sensitivity
from paring.pruning.repair import DAMPING
from paring.pruning.sensitivity import GroupTrials, Trial

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    torch.manual_seed(1)
    x = torch.randn(3, 40, 1, 6, 6, dtype=torch.float64)
    return [(part, (part.mean((1, 2, 3)) > 0).long() + 2 * (part[:, 0, 0, 0] > 0).long()) for part in x]


@pytest.fixture(scope="module")
def net(batches: list[Batch]) -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 4)),
    ).double()
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2)
    for _ in range(20):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(found(x), y).backward()
            optimizer.step()
    return found.eval()


@pytest.fixture(scope="module")
def found(net: nn.Module, batches: list[Batch]) -> Sensitivity:
    return pr.sensitivity(net, batches)


def mean_loss(net: nn.Module, batches: list[Batch]) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(net(x).float(), y)) for x, y in batches) / len(batches)


def test_each_group_is_looked_at_alone(found: Sensitivity, net: nn.Module, batches: list[Batch]) -> None:
    assert [row.layers for row in found.rows] == [("0",), ("3",), ("6",)]
    assert [row.units for row in found.rows] == [8, 6, 5]
    assert found.loss == pytest.approx(mean_loss(net, batches))
    assert found.renewed is not None
    assert found.renewed != found.loss
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.macs == 36 * 8 * 9 + 4 * 6 * 72 + 24 * 5 + 5 * 4
    assert [row.macs for row in found.rows] == [36 * 8 * 9, 4 * 6 * 72, 24 * 5]
    assert [trial.gone for trial in found.rows[0].trials] == [2, 4, 6]
    assert [trial.share for trial in found.rows[0].trials] == [0.25, 0.5, 0.75]
    assert found.rows[0].trials[1].macs == pytest.approx((4 * 36 * 9 + 4 * 6 * 36 + 140) / found.macs)


def test_the_losses_are_those_of_networks_without_the_units(net: nn.Module, batches: list[Batch]) -> None:
    """By magnitude it is plain which units go: the linear layer's smallest rows, their columns in the next one."""
    search = Search(Magnitude())
    found = pr.sensitivity(net, batches, at="units:6", shares=(0.4,), search=search)
    row = found.rows[0]
    weight = net.get_parameter("6.weight")
    gone = weight.square().sum(1).argsort()[:2]
    stays = torch.tensor([i for i in range(5) if i not in gone.tolist()])
    closed = copy.deepcopy(net)
    with torch.no_grad():
        closed.get_parameter("8.weight")[:, gone] = 0
    assert row.trials[0].gone == 2
    assert row.trials[0].loss == pytest.approx(mean_loss(closed, batches), rel=1e-6)
    assert closed[-1].bias is not None
    with torch.no_grad():  # least squares by hand: what the next layer says, from what stays
        read = torch.cat([net[:8](x) for x, _ in batches])  # type: ignore[index]
        said = read @ net.get_parameter("8.weight").T
        mean = read.mean(0)
        left = (read - mean)[:, stays]
        ridge = DAMPING * left.square().mean(0).mean()
        gram = left.T @ left / len(left) + ridge * torch.eye(3, dtype=torch.float64)
        lost = (read - mean)[:, gone] @ net.get_parameter("8.weight")[:, gone].T
        closed.get_parameter("8.weight")[:, stays] += torch.linalg.solve(gram, left.T @ lost / len(left)).T
        closed.get_parameter("8.bias").add_((said - read @ closed.get_parameter("8.weight").T).mean(0))
        # and the BatchNorm's statistics anew
        maps = [net[0](x) for x, _ in batches]  # type: ignore[index]
        closed.get_buffer("1.running_mean").copy_(torch.stack([part.mean((0, 2, 3)) for part in maps]).mean(0))
        closed.get_buffer("1.running_var").copy_(torch.stack([part.var((0, 2, 3)) for part in maps]).mean(0))
    assert row.trials[0].repaired == pytest.approx(mean_loss(closed, batches), rel=1e-5)
    whole = copy.deepcopy(net)
    for name in ("1.running_mean", "1.running_var"):
        whole.get_buffer(name).copy_(closed.get_buffer(name))
    assert found.renewed == pytest.approx(mean_loss(whole, batches), rel=1e-6)
    assert row.trials[0].repaired != pytest.approx(row.trials[0].loss, rel=1e-3)


def test_trials_do_not_disturb_each_other(found: Sensitivity, net: nn.Module, batches: list[Batch]) -> None:
    """One group, or one share, alone gives what it gives among the others."""
    for number, row in enumerate(found.rows):
        alone = pr.sensitivity(net, batches, at=f"units:{row.layers[0]}", shares=(0.75,)).rows[0]
        theirs, ours = found.rows[number].trials[2], alone.trials[0]
        assert (ours.gone, ours.macs) == (theirs.gone, theirs.macs)
        assert ours.loss == theirs.loss
        assert ours.repaired == theirs.repaired


def test_the_network_stays_as_it_is(net: nn.Module, batches: list[Batch]) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    try:
        pr.sensitivity(net, batches, at="units:0", shares=(0.5,), search=Search(batches=1))
        assert all(module.training for module in net.modules())
    finally:
        net.eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None or p.requires_grad for p in net.parameters())


def test_what_can_go() -> None:
    def trial(share: float, loss: float, repaired: float | None = None) -> Trial:
        return Trial(share, round(share * 4), 1.0, 1.0, loss, repaired)

    def largest(*trials: Trial, within: float = 0.1, renewed: float = 1.0) -> float | None:
        row = GroupTrials(("a",), 4, 10, 10, trials)
        best = Sensitivity("net", 1.0, renewed, 10, 10, (row,)).can_go(row, within)
        return None if best is None else best.share

    assert largest(trial(0.25, 1.05), trial(0.5, 1.1), trial(0.75, 1.2)) == 0.5
    assert largest(trial(0.25, 3.0, 1.05), trial(0.5, 1.0, 1.3)) == 0.25  # what is repaired counts
    assert largest(trial(0.25, 1.2), trial(0.5, 1.0)) is None  # a larger cut that does well by chance does not count
    assert largest(trial(0.25, math.nan)) is None
    assert largest(trial(0.1, 1.0)) is None  # no unit went
    assert largest(trial(0.25, 1.2), within=0.2) == 0.25
    assert largest(trial(0.25, 3.0, 1.3), renewed=1.25) == 0.25  # statistics made anew are not the cut's doing
    assert largest(trial(0.25, 1.3), renewed=1.25) is None


def test_it_is_told_as_a_table_and_as_json(found: Sensitivity) -> None:
    lines = str(found).splitlines()
    assert lines[0].startswith("Sequential: loss ")
    assert lines[1].split() == ["units", "of", "units", "parameters", "MACs", "-25%", "-50%", "-75%", "can", "go"]
    assert [line.split()[0] for line in lines[2:5]] == ["0", "3", "6"]
    told = json.loads(json.dumps(found.to_dict(within=math.inf), allow_nan=False))
    assert [group["can_go"] for group in told["groups"]] == [0.75, 0.75, 0.75]
    assert told["groups"][1]["trials"][0]["loss"] == found.rows[1].trials[0].loss


def test_progress_and_no_repair(net: nn.Module, batches: list[Batch]) -> None:
    seen: list[Progress] = []
    rows = pr.sensitivity(net, batches, shares=(0.5,), search=Search(repair=False, batches=1), watch=seen.append).rows
    assert [(one.done, one.total) for one in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(trial.repaired is None and trial.best == trial.loss for row in rows for trial in row.trials)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"shares": (0.5, 1.0)},
            r"sensitivity\(shares=\(0.5, 1.0\)\): shares of a group's units that go, each in \(0, 1\)",
        ),
        ({"shares": ()}, "each in"),
        ({"batches": []}, "batches is empty"),
        ({"loss": lambda net, batch: net(batch[0])}, "has to return a scalar"),
    ],
)
def test_refused_with_the_reason(options: dict[str, Any], why: str, net: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(ValueError, match=why):
        pr.sensitivity(net, **{"batches": batches, **options})
