"""What closing a unit costs the loss, against one example at a time and against really closing it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core import Inputs
from paring.pruning import Fisher, Magnitude, Taylor
from paring.pruning.gated import GatedCopy
from paring.pruning.importance import gradients
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
