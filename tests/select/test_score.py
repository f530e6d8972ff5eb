"""Scores against values computed by hand and against finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.select import Loss, grasp, magnitude, random, snip, synflow


class Product(nn.Module):
    """y = b a x with scalar weights."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[a]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([[b]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.t() @ self.b.t()


def half_square(x: float, target: float) -> Loss:
    return lambda net: 0.5 * (net(torch.tensor([[x]], dtype=torch.float64)) - target).pow(2).sum()


def test_snip_by_hand() -> None:
    # y = 2*3*1 = 6, residual 6 - 1 = 5: dL/da = 5 b = 15, dL/db = 5 a = 10; |w g| = 30 and 30
    found = snip(Product(2.0, 3.0), ["a", "b"], half_square(1.0, 1.0))
    assert {name: value.item() for name, value in found.items()} == {"a": 0.5, "b": 0.5}


def test_grasp_by_hand() -> None:
    # g = (15, 10); H = [[b b, r + a b], [r + a b, a a]] = [[9, 11], [11, 4]]; H g = (245, 205)
    found = grasp(Product(2.0, 3.0), ["a", "b"], half_square(1.0, 1.0))
    assert {name: value.item() for name, value in found.items()} == {"a": 490.0, "b": 615.0}


def test_synflow_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        net[0].bias.copy_(torch.tensor([-1.0, 0.0]))
        net[2].weight.copy_(torch.tensor([[-5.0, 6.0]]))
        net[2].bias.fill_(7.0)
    found = synflow(net, ["0.weight", "2.weight"], (torch.randn(3, 2),))
    assert found["0.weight"].tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert found["2.weight"].tolist() == [[20.0, 42.0]]
    assert net[2].weight.dtype == torch.float32
    assert net[2].weight[0, 0].item() == -5.0


@pytest.fixture
def problem() -> tuple[nn.Module, Loss]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = torch.randn(8, 1, 4, 4, dtype=torch.float64), torch.randint(4, (8,))
    return net, lambda one: F.cross_entropy(one(x), y)


def gradients(net: nn.Module, names: list[str], loss: Loss) -> list[Tensor]:
    return list(torch.autograd.grad(loss(net), [net.get_parameter(name) for name in names]))


def test_grasp_is_the_hessian_times_the_gradient(problem: tuple[nn.Module, Loss]) -> None:
    net, loss = problem
    names = ["0.weight", "4.weight"]
    before = copy.deepcopy(net.state_dict())
    found = grasp(net, names, loss)
    grads, step = gradients(net, names, loss), 1e-5
    sides = []
    for sign in (1, -1):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for name, g in zip(names, grads, strict=True):
                moved.get_parameter(name).add_(sign * step * g)
        sides.append(gradients(moved, names, loss))
    for name, up, down in zip(names, *sides, strict=True):
        product = (up - down) / (2 * step) * net.get_parameter(name).detach()
        assert torch.allclose(found[name], product, rtol=1e-5, atol=1e-9)
    net.load_state_dict(before)
    assert found["0.weight"].abs().sum() > 0


def test_snip_leaves_the_network_alone(problem: tuple[nn.Module, Loss]) -> None:
    net, loss = problem
    before = copy.deepcopy(net.state_dict())
    found = snip(net, ["0.weight", "4.weight"], loss)
    assert sum(float(score.sum()) for score in found.values()) == pytest.approx(1.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_snip_refuses_a_dead_network() -> None:
    net = nn.Linear(2, 1)
    nn.init.zeros_(net.weight)
    with pytest.raises(ValueError, match="all sensitivities are zero"):
        snip(net, ["weight"], lambda one: one(torch.ones(1, 2)).sum())


def test_magnitude_and_random() -> None:
    weights = {"a": torch.tensor([[-2.0, 1.0]]), "b": torch.zeros(3)}
    assert magnitude(weights)["a"].tolist() == [[2.0, 1.0]]
    one, two = (random(weights, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one["a"], two["a"])
    assert one["b"].unique().numel() == 3


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(x, x, x, need_weights=False)[0].mean(1))
        return out


def test_grasp_of_attention() -> None:
    net, x, y = Attends(), torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0])
    found = grasp(net, ["head.weight", "mix.in_proj_weight"], lambda twin: F.cross_entropy(twin(x), y))
    assert all(bool(score.isfinite().all()) and bool((score != 0).any()) for score in found.values())


@pytest.mark.parametrize("kind", ["snip", "grasp", "synflow"])
def test_frozen_weights_are_scored_like_others(kind: str, problem: tuple[nn.Module, Loss]) -> None:
    net, loss = problem
    names = [name for name, p in net.named_parameters() if p.dim() > 1]

    def scores(of: nn.Module) -> dict[str, Tensor]:
        if kind == "synflow":
            return synflow(of, names, (torch.ones(1, 1, 4, 4, dtype=torch.float64),))
        return {"snip": snip, "grasp": grasp}[kind](of, names, loss)

    frozen = copy.deepcopy(net).requires_grad_(False)
    for name, score in scores(frozen).items():
        assert torch.equal(score, scores(net)[name])
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("score", [snip, grasp])
def test_scores_that_are_no_numbers_are_refused(score: Any) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="not finite"):
        score(net, ["weight"], lambda twin: twin(torch.full((2, 3), float("nan"))).sum() ** 2)
