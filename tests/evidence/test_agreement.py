"""Measures of the target heuristic, against flips made by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.hard.agreement import target_quality
from evidence.hard.brute_force import brute_force
from evidence.hard.feasible_agreement import feasible_agreement, sign_loss
from paring.hard import STE, Sign, Staircase
from paring.hard.outcome import Found, NotFound
from paring.hard.target_propagation import TargetPropagation
from paring.hard.target_search import ftprop

X3 = torch.tensor(list(product([-1.0, 1.0], repeat=3)), dtype=torch.float64)


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), Sign(STE()), nn.Linear(6, 5), Staircase(3), nn.Linear(5, 3)
    ).double()


def _first(z: Tensor, y: Tensor) -> Tensor:
    return z[:, 0] * y


def test_pairs_and_adoption_against_flips_by_hand() -> None:
    net, pairs = _net(), 60
    net(torch.randn(50, 4, dtype=torch.float64))  # running statistics
    x, y = torch.randn(17, 4, dtype=torch.float64), torch.randint(0, 3, (17,))
    net[1].eval()
    found = target_quality(net, x, y, pairs=pairs, parts=3, shares=(0.2, 1.0), seed=7)
    assert net.training
    assert not net[1].training
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert [quality.layer for quality in found] == ["2", "4"]

    net.eval()
    generator = torch.Generator().manual_seed(7)
    for at, quality in ((2, found[0]), (4, found[1])):
        below = net[: at + 1](x).detach().requires_grad_()
        above = F.cross_entropy(net[at + 1 :](below), y, reduction="none")
        (g,) = torch.autograd.grad(above.sum(), below)
        assert quality.loss == pytest.approx(float(above.detach().mean()))
        example = torch.randint(17, (pairs,), generator=generator)
        unit = torch.randint(below.shape[1], (pairs,), generator=generator)
        rows = []
        for e, u in zip(example.tolist(), unit.tolist(), strict=True):
            sides = []
            for way in (1, -1):
                h = below[e : e + 1].detach().clone()
                h[0, u] = way if at == 2 else (h[0, u] + way / 3).clamp(0, 1)
                sides.append(float(F.cross_entropy(net[at + 1 :](h), y[e : e + 1]).detach()))
            rows.append(
                (float(g[e, u].abs()), np.sign(-float(g[e, u])) * (sides[1] - sides[0]), abs(sides[1] - sides[0]))
            )
        rows.sort(key=lambda row: row[0])
        gains, sizes = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
        told = gains != 0
        assert quality.right == pytest.approx((gains[told] > 0).mean())
        assert quality.captured == pytest.approx(gains.sum() / sizes[told].sum())
        assert quality.matters == pytest.approx((sizes > 0).mean())
        third = gains[20:40]
        assert quality.right_by_size[1] == pytest.approx((third[third != 0] > 0).mean())
        flat = below.detach()
        low = -1.0 if at == 2 else 0.0
        step = 2.0 if at == 2 else 1 / 3
        aim = (flat - torch.sign(g) * step).clamp(low, 1.0)
        for adopted in quality.adopted:
            moved = flat.clone()
            most = max(1, round(adopted.share * flat.shape[1]))
            for e in range(17):
                order = sorted(range(flat.shape[1]), key=lambda u: -float(g[e, u].abs()))
                for u in [u for u in order if abs(float(aim[e, u] - flat[e, u])) > 1e-9][:most]:
                    moved[e, u] = aim[e, u]
            assert adopted.targets == pytest.approx(float(F.cross_entropy(net[at + 1 :](moved), y).detach()))
            torch.rand(flat.shape, generator=generator)  # what its random moves have drawn


def test_a_heuristic_that_is_always_wrong() -> None:
    """out = h - 0.8, loss out²: at h = 1 the gradient says down, and down is worse."""
    net = nn.Sequential(nn.Linear(1, 1), Sign(), nn.Linear(1, 1))
    with torch.no_grad():
        net[2].weight.fill_(1.0)
        net[2].bias.fill_(-0.8)
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.rand(9, 1) + 0.1
    (found,) = target_quality(net, x, x, pairs=20, losses=lambda out, _: out[:, 0].square())
    assert found.right == 0.0
    assert found.captured == pytest.approx(-1.0)
    assert found.adopted[0].targets == pytest.approx(3.24)
    assert found.adopted[0].random == pytest.approx(3.24)
    assert found.loss == pytest.approx(0.04)


def test_a_linear_loss_makes_it_perfect() -> None:
    net = nn.Sequential(nn.Linear(4, 6), Sign(), nn.Linear(6, 1)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = torch.where(torch.rand(30) < 0.5, -1.0, 1.0).double()
    (found,) = target_quality(net, x, y, losses=_first)
    assert found.right == found.captured == 1.0
    assert all(part == 1.0 for part in found.right_by_size)
    weight, bias = net[2].weight.detach(), float(net[2].bias.detach())
    assert found.adopted[-1].targets == pytest.approx(bias * float(y.mean()) - float(weight.abs().sum()))
    assert found.adopted[0].targets < found.loss
    best = brute_force(net, x, y, "1", losses=_first)
    assert best.targets == pytest.approx(best.best)
    assert best.agreement == best.beaten == 1.0


def test_a_unit_without_gradient_is_ignored() -> None:
    net = nn.Sequential(nn.Linear(4, 2), Sign(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[2].weight[0, 1] = 0.0
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
    (found,) = target_quality(net, x, y, pairs=400, losses=_first)
    assert found.ignored == pytest.approx(0.5, abs=0.1)
    assert found.matters == pytest.approx(1 - found.ignored)
    assert found.right_by_size[0] is None


def test_brute_force_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 4), Sign(), nn.Linear(4, 3), Sign(), nn.Linear(3, 2)).double()
    y = torch.randint(0, 2, (8,))
    found = brute_force(net, X3, y, "1")
    h = net[:2](X3).detach().requires_grad_()
    loss = F.cross_entropy(net[2:](h), y, reduction="none")
    (g,) = torch.autograd.grad(loss.sum(), h)
    aim = torch.where(g == 0, h, -g.sign()).detach()
    reached = F.cross_entropy(net[2:](aim), y, reduction="none")
    shares, kept, bests, beaten, means = [], [], [], [], []
    for e in range(8):
        tried = {}
        for row in product([-1.0, 1.0], repeat=4):
            out = net[2:](torch.tensor([row], dtype=torch.float64))
            tried[row] = float(F.cross_entropy(out, y[e : e + 1]).detach())
        best = min(tried.values())
        optimal = [np.array(row) for row, value in tried.items() if value <= best + 1e-12]
        shares.append(max((row == aim[e].numpy()).mean() for row in optimal))
        kept.append(max((row == h[e].detach().numpy()).mean() for row in optimal))
        bests.append(best)
        means.append(np.mean(list(tried.values())))
        beaten.append(np.mean([value >= float(reached[e].detach()) - 1e-12 for value in tried.values()]))
    told = (found.agreement, found.kept, found.best, found.random, found.beaten, found.targets, found.loss)
    naive = (
        *map(np.mean, (shares, kept, bests, means, beaten)),
        float(reached.detach().mean()),
        float(loss.detach().mean()),
    )
    assert told == pytest.approx(naive)


def _untrained(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for above, below in zip((3, *widths[:-1]), widths, strict=True):
        modules += [nn.Linear(above, below), Sign()]
    return nn.Sequential(*modules, nn.Linear(widths[-1], 1)).double()


def test_feasible_targets_by_hand() -> None:
    net, y = _untrained(1, 4), X3.prod(1)
    outcome, (layer,) = feasible_agreement(net, X3, y, seed=1)
    assert isinstance(outcome, Found)
    outcome.check(X3.numpy(), y.numpy())
    start = [(net[0].weight.detach().numpy(), net[0].bias.detach().numpy())]
    assert outcome == ftprop(X3.numpy(), y.numpy(), [4], start=start, seed=1, enumeration=0)
    h = net[:2](X3).detach().requires_grad_()
    (g,) = torch.autograd.grad(sign_loss(net[2](h), y[:, None]), h)
    goal, now, aim = outcome.patterns(X3.numpy())[0], h.detach().numpy(), np.sign(-g.numpy())
    assert layer.changed == pytest.approx((goal != now).mean())
    assert layer.agreement == pytest.approx((aim == goal)[goal != now].mean())
    assert layer.kept == pytest.approx((aim == goal)[goal == now].mean())
    assert all(p.grad is None for p in net.parameters())


def test_a_network_that_solves_the_task_is_kept() -> None:
    known = ftprop(X3.numpy(), X3.prod(1).numpy(), [3])
    assert isinstance(known, Found)
    outcome, (layer,) = feasible_agreement(known.network(), X3, X3.prod(1))
    assert isinstance(outcome, Found)
    assert layer.changed == 0
    assert layer.agreement is None


def test_nothing_is_compared_without_a_network() -> None:
    outcome, layers = feasible_agreement(_untrained(0, 2), X3, X3.prod(1), budget=5)
    assert isinstance(outcome, NotFound)
    assert layers == ()


def test_what_they_refuse() -> None:
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="at least one pair a part"):
        target_quality(_net(), x, y, pairs=2)
    with pytest.raises(ValueError, match=r"hard units that ran: \[\]"):
        target_quality(nn.Sequential(nn.Linear(4, 3)).double(), x, y)
    act = Sign()
    with pytest.raises(ValueError, match="each a module of its own that runs once"):
        target_quality(nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act).double(), x, y)
    with pytest.raises(ValueError, match=r"'4' is no layer of at most 3 sign units; units of each layer: \{'2': 6\}"):
        brute_force(_net(), x, y, "4", most=3)
    with pytest.raises(ValueError, match="must be Linear, Sign"):
        feasible_agreement(_net(), x, y)


def test_targets_of_a_trainer_leave_gradients_alone() -> None:
    net = _untrained(0, 4, 3)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    first, second = TargetPropagation(net, objective=sign_loss).targets(X3, X3.prod(1)[:, None])
    assert (first.name, second.name) == ("1", "3")
    assert (first.outputs == net[:2](X3)).all()
    assert (first.targets == torch.sign(-first.gradient)).all()
    assert all((p.grad == 1).all() for p in net.parameters() if p.grad is not None)
