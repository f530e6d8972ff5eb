"""What closing a unit costs the loss, against one example at a time and against really closing it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import paring as pr
from paring.core import Inputs
from paring.pruning import Fisher, Magnitude, Taylor
from paring.pruning.gated import GatedCopy
from paring.pruning.importance import curvatures, gradients, steepness
from paring.pruning.prune import cross_entropy
from pruning.networks import Residual, batches, mlp, seeded


def exact(net: Any, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


NETS = {"residual": (Residual, (2, 6, 6)), "mlp": (mlp, (5,))}


def gated(name: str) -> tuple[GatedCopy, list[tuple[Tensor, Tensor]]]:
    make, shape = NETS[name]
    net = seeded(make).double().eval()
    found = [(x.double(), y) for x, y in batches(shape, count=2, size=5)]
    return GatedCopy.of(net, Inputs((found[0][0][:2],)), "units"), found


def naive(copy: GatedCopy, found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Gradients by the gates by central differences of each example's loss."""
    rows, step = [], 1e-5
    for x, y in found:
        for row in range(len(x)):
            line = []
            for unit in range(copy.units):
                losses = []
                for sign in (1, -1):
                    values = torch.ones(copy.units, dtype=torch.double)
                    values[unit] += sign * step
                    copy.set(values)
                    losses.append(float(exact(copy.net, (x[row : row + 1], y[row : row + 1])).detach()))
                line.append((losses[0] - losses[1]) / (2 * step))
            rows.append(line)
    copy.set(torch.ones(copy.units))
    return torch.tensor(rows, dtype=torch.double)


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_each_example(name: str) -> None:
    copy, found = gated(name)
    torch.testing.assert_close(
        gradients(copy, found, exact).double(), naive(copy, found).double(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", NETS)
def test_fisher_and_taylor_are_their_formulas(name: str) -> None:
    copy, found = gated(name)
    rows = naive(copy, found)
    fisher = Fisher().look(copy, found, exact)
    torch.testing.assert_close(fisher.double(), 0.5 * rows.square().mean(0), atol=1e-6, rtol=1e-3)
    taylor = Taylor().look(copy, found, exact)
    torch.testing.assert_close(taylor.double(), rows.mean(0).abs(), atol=1e-6, rtol=1e-3)


def test_it_leaves_the_network_and_its_flags_alone() -> None:
    copy, found = gated("residual")
    before = {name: value.clone() for name, value in copy.net.state_dict().items()}
    next(copy.net.parameters()).requires_grad_(False)
    Fisher().look(copy, found, exact)
    assert all(torch.equal(before[name], value) for name, value in copy.net.state_dict().items())
    flags = [p.requires_grad for p in copy.net.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)
    assert all(p.grad is None for p in copy.net.parameters())


def test_magnitude_counts_all_rows_of_a_group() -> None:
    copy, _ = gated("residual")
    scores = Magnitude().look(copy, [], cross_entropy)
    parts = dict(zip((site.layers for site in copy.sites), scores.split(copy.sizes), strict=True))
    together = next(part for layers, part in parts.items() if "stem" in layers)
    modules = dict(copy.net.named_modules())
    layers = next(layers for layers in parts if "stem" in layers)
    expected = torch.stack([modules[name].weight.flatten(1).square().sum(1) for name in layers]).sum(0)
    torch.testing.assert_close(together.double(), (expected / expected.mean()).detach(), atol=1e-6, rtol=1e-5)


def test_a_batch_as_a_whole_where_examples_cannot_be_told_apart() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            twice = torch.cat([x, x])  # six rows for three examples, and then half a row for each
            return self.b(torch.relu(self.a(twice))[: len(x)])

    torch.manual_seed(0)
    net = Mixing()
    found = batches((5,), count=1, size=3)
    copy = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    rows = gradients(copy, found, exact)
    assert rows.shape == (3, 6)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda net, batch: net(batch[0]), "scalar"),
        (lambda net, batch: net(batch[0]).sum().detach(), "detach"),
        (lambda net, batch: net(batch[0]).sum() * float("nan"), "finite"),
    ],
)
def test_losses_that_cannot_be_judged_by(loss: Any, said: str) -> None:
    copy, found = gated("mlp")
    with pytest.raises(ValueError, match=said):
        gradients(copy, found, loss)


def taught(copy: GatedCopy, found: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The network's own answers as targets."""
    with torch.no_grad():
        return [(x, copy.net(x)) for x, _ in found]


def distance(net: Any, batch: Any) -> Tensor:
    return F.mse_loss(net(batch[0]), batch[1])


@pytest.mark.parametrize("name", NETS)
def test_where_slopes_vanish_the_curvature_counts(name: str) -> None:
    copy, found = gated(name)
    own = taught(copy, found)
    assert float(gradients(copy, own, distance).abs().max()) < 1e-12
    # at its own answers the second derivative of the squared distance is twice the mean square of the answers' derivatives
    step, rows = 1e-5, []
    for unit in range(copy.units):
        moved = []
        for sign in (1, -1):
            values = torch.ones(copy.units, dtype=torch.double)
            values[unit] += sign * step
            copy.set(values)
            moved.append(torch.cat([copy.net(x) for x, _ in own]).detach())
        rows.append((2 * ((moved[0] - moved[1]) / (2 * step)).square()).mean())
    copy.set(torch.ones(copy.units))
    expected = torch.stack(rows)
    rows_found = curvatures(copy, own, distance, probes=100)
    assert rows_found.shape == (200 * 5, copy.units)
    mean = rows_found.mean(0).double()
    assert float(torch.corrcoef(torch.stack([mean, expected]))[0, 1]) > 0.95
    torch.testing.assert_close(mean.sum(), expected.sum(), rtol=0.1, atol=0)
    judged = Fisher().look(copy, own, distance).double()
    assert float(torch.corrcoef(torch.stack([judged, expected]))[0, 1]) > 0.9


def test_one_answer_needs_one_probe() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    found = [(x.double(), y) for x, y in batches((5,), count=2, size=5)]
    copy = GatedCopy.of(net, Inputs((found[0][0][:2],)), "units")
    slopes = gradients(copy, found, lambda net, batch: net(batch[0]).mean())  # of each example's answer
    torch.testing.assert_close(
        curvatures(copy, taught(copy, found), distance, probes=1), 2 * slopes.square(), atol=1e-6, rtol=1e-4
    )


def test_slopes_count_where_there_are_any() -> None:
    copy, found = gated("mlp")
    own = taught(copy, found)
    assert steepness(copy, found, exact) > 1
    assert steepness(copy, own, distance) < 1e-12
    near = [(x, y + 0.01) for x, y in own]
    assert steepness(copy, near, distance) < Fisher().flat
    torch.testing.assert_close(
        Fisher(flat=0).look(copy, near, distance), 0.5 * gradients(copy, near, distance).square().mean(0)
    )
    assert not torch.allclose(Fisher().look(copy, near, distance), Fisher(flat=0).look(copy, near, distance))


class Once(torch.autograd.Function):
    """A square that can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope * ctx.saved_tensors[0]


def test_losses_without_a_second_derivative_go_by_slopes() -> None:
    copy, found = gated("mlp")

    def once(net: Any, batch: Any) -> Tensor:
        return Once.apply(net(batch[0])).mean()  # type: ignore[no-untyped-call]

    assert curvatures(copy, found, once).shape == (0, copy.units)
    assert torch.equal(Fisher().look(copy, found, once), Fisher(flat=0).look(copy, found, once))


def test_losses_may_write_into_the_answer() -> None:
    copy, found = gated("mlp")
    own = taught(copy, found)

    def writes(net: Any, batch: Any) -> Tensor:
        return net(batch[0]).sub_(batch[1]).square().mean()

    torch.testing.assert_close(Fisher().look(copy, own, writes), Fisher().look(copy, own, distance))


def test_a_network_that_learns_its_own_answers_keeps_what_they_rest_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[2].weight[:, 8:] *= 0.01
    found = taught(GatedCopy.of(net, Inputs((torch.ones(2, 5),)), "units"), batches((5,), count=2))
    small, outcome = pr.prune(net, found, distance, to=pr.Budget(params=0.55), epochs=0)
    assert outcome.looks[1].loss < 1e-3 * float(torch.cat([y for _, y in found]).square().mean())
    assert small[0].out_features == 8
