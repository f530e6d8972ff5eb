"""Weight sharing: codebooks on a network against loops, learning against the known optimum, tuning against least squares."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paring.compression.learning import Alternation
from paring.compression.training import Descent, Training
from paring.compression.tuning import estimate_norms, tune_codewords
from paring.compression.weight_sharing import Sharing, groups_of
from tests.compression.nets import Tied


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 3)).double()


def test_groups() -> None:
    net = layers()
    assert groups_of(net, "layer") == {n: [n] for n in ("0.weight", "2.weight", "3.weight")}
    assert groups_of(net, "kind") == {"3 dimensions": ["0.weight"], "2 dimensions": ["2.weight", "3.weight"]}
    assert groups_of(net, "global") == {"all": ["0.weight", "2.weight", "3.weight"]}
    assert groups_of(Tied(), "layer").keys() == {"words.weight", "conv.weight"}
    with pytest.raises(ValueError, match="no weight"):
        Sharing.of(nn.BatchNorm1d(3), "layer")


@pytest.mark.parametrize("scope", ["layer", "kind", "global"])
@pytest.mark.parametrize("keep_zeros", [True, False])
def test_weights_take_the_nearest_codeword(scope: Any, keep_zeros: bool) -> None:
    net = layers()
    with torch.no_grad():
        net[2].weight[:, :3] = 0
    sharing = Sharing.of(net, scope, keep_zeros=keep_zeros)
    before = {name: net.get_parameter(name).detach().clone() for name in sharing.shapes}
    sharing.fit(before, 3)
    sharing.write(net)
    assert all(torch.equal(net.get_parameter(name), value) for name, value in sharing.weights().items())
    for group, names in sharing.groups.items():
        words = sharing.books[group].values.tolist()
        assert len(words) <= 3
        for name in names:
            for old, new in zip(
                before[name].flatten().tolist(), net.get_parameter(name).flatten().tolist(), strict=True
            ):
                if keep_zeros and name == "2.weight" and old == 0:
                    assert new == 0
                else:
                    assert new == pytest.approx(min(words, key=lambda c, old=old: abs(c - old)), abs=1e-12)


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_summed_gradients_are_those_of_the_codewords(keep_zeros: bool) -> None:
    net = layers()
    with torch.no_grad():
        net[3].weight[0] = 0
    sharing = Sharing.of(net, "global", keep_zeros=keep_zeros)
    sharing.fit(dict(net.named_parameters()), 4)
    words = sharing.books["all"].values.clone().requires_grad_()
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = {}
    for name, shape in sharing.shapes.items():
        part, mask = words[sharing.indices[name]], sharing.kept[name]
        made[name] = part.view(shape) if mask is None else torch.zeros(shape).double().masked_scatter(mask, part)
    torch.func.functional_call(net, made, (x,)).square().sum().backward()
    sharing.write(net)
    names = list(sharing.shapes)
    found = torch.autograd.grad(net(x).square().sum(), [net.get_parameter(n) for n in names])
    assert words.grad is not None
    torch.testing.assert_close(
        sharing.summed("all", dict(zip(names, found, strict=True))), words.grad, atol=1e-10, rtol=0
    )


class Quadratic(nn.Module):
    """sum_i h_i (w_i - a_i)^2 / 2 as the loss of a network."""

    def __init__(self, a: Tensor, h: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(a.clone())
        self.a, self.h = a, h

    def forward(self) -> Tensor:
        return 0.5 * (self.h * (self.weight - self.a).square()).sum()


def best_by_enumeration(a: Tensor, h: Tensor, size: int) -> float:
    """Smallest loss over all assignments to `size` codewords."""
    best = float("inf")
    for assignment in itertools.product(range(size), repeat=len(a)):
        total = 0.0
        for k in range(size):
            chosen = [i for i, z in enumerate(assignment) if z == k]
            if chosen:
                mass = sum(float(h[i]) for i in chosen)
                mean = sum(float(h[i] * a[i]) for i in chosen) / mass
                total += sum(0.5 * float(h[i]) * (float(a[i]) - mean) ** 2 for i in chosen)
        best = min(best, total)
    return best


@pytest.mark.parametrize("augmented", [True, False])
def test_learning_reaches_the_known_optimum(augmented: bool) -> None:
    """One-shot k-means knows nothing of the loss's curvature; the alternation finds the best codebook for the loss."""
    a = torch.tensor([-1.0, -0.8, -0.1, 0.2, 0.7, 1.1, 0.05, -0.4], dtype=torch.float64)
    h = torch.tensor([1.0, 1.0, 8.0, 1.0, 2.0, 1.0, 6.0, 0.5], dtype=torch.float64)
    net = Quadratic(a.view(2, 4), h.view(2, 4))
    training = Training(lambda one, batch: one(), lambda epoch: [None] * 30, 30, lr=5e-3)
    sharing = Sharing.of(net, "layer")
    sharing.fit({"weight": net.weight}, 3)
    sharing.write(net)
    one_shot = float(net().detach())
    with torch.no_grad():
        net.weight.copy_(a.view(2, 4))
    state = Alternation(net, sharing, mu=0.3, augmented=augmented)
    for _ in range(20):
        descent = Descent(training, [net.weight], 2, final=0.05)
        state.learn(descent, 2)
        sharing.fit(state.targets(), 3)
        state.multiply(1.25)
    assert state.distance() < 0.05
    reached = float(state.compressed()().detach())
    best = best_by_enumeration(a, h, 3)
    assert reached < one_shot
    assert reached == pytest.approx(best, rel=0.15)


def test_the_trust_region_holds() -> None:
    a = torch.linspace(-1, 1, 12).double().view(3, 4)
    net = Quadratic(a, torch.ones(3, 4).double())
    sharing = Sharing.of(net, "layer")
    sharing.fit({"weight": net.weight}, 2)
    state = Alternation(net, sharing, mu=1e-6, radius=0.2)
    training = Training(lambda one, batch: one(), lambda epoch: [None] * 20, 20, lr=1e-2)
    state.learn(Descent(training, [net.weight], 1), 1)
    apart = (net.weight.detach() - sharing.weights()["weight"]).abs().max()
    assert 0.19 < apart <= 0.2 + 1e-12


def test_tuned_codewords_solve_the_least_squares_problem() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.randn(60, 3, generator=generator)
    net = nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 8, generator=generator))
    sharing = Sharing.of(net, "layer")
    sharing.fit({"weight": net.weight}, 4)
    index = sharing.indices["weight"].view(3, 8)
    design = torch.stack([((index == k).float() @ x.T).T.flatten() for k in range(4)], 1)
    exact = torch.linalg.lstsq(design, y.flatten()[:, None]).solution[:, 0]
    training = Training(lambda one, batch: (one(x) - y).square().mean(), lambda epoch: [None] * 100, 100)
    tune_codewords(net, sharing, training, 4, lr=0.04)
    torch.testing.assert_close(sharing.books["weight"].values.float(), exact, atol=2e-3, rtol=0)
    assert torch.equal(net.weight.detach(), sharing.weights()["weight"].float())


def test_zero_stays_zero_while_codewords_are_tuned() -> None:
    net = nn.Linear(6, 4)
    sharing = Sharing.of(net, "layer")
    sharing.fit({"weight": net.weight}, 3, zero=True)
    training = Training(lambda one, batch: (one(torch.ones(2, 6)) - 3).square().mean(), lambda epoch: [None] * 20, 20)
    words = sharing.books["weight"].values.clone()
    tune_codewords(net, sharing, training, 1, lr=0.01)
    after = sharing.books["weight"].values
    assert after[words == 0].tolist() == [0.0]
    assert (after[words != 0] != words[words != 0]).all()


def test_norm_statistics_are_plain_means_over_an_epoch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    x = torch.randn(40, 3)
    training = Training(lambda one, batch: one(batch).sum(), lambda epoch: x.split(10), 4)
    estimate_norms(net, training)
    hidden = [net[0](part) for part in x.split(10)]
    mean = torch.stack([part.mean(0) for part in hidden]).mean(0)
    var = torch.stack([part.var(0) for part in hidden]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, var)
    assert net[1].momentum == 0.1
    assert not net.training
