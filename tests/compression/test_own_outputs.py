"""`compress` on networks and data of anyone's: mappings, several inputs, no labels, loaders."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import paring as pr
from paring.compression import EntropyRounding, GridRounding, Objective, Uniform


class Answers(nn.Module):
    """Two inputs by name; answers a mapping, with a loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.out = nn.Linear(6, 32), nn.Embedding(5, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, kind: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.out((self.one(x) + self.two(kind)).relu())
        return {"logits": logits, "loss": None if labels is None else F.cross_entropy(logits, labels)}


def mappings() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(20, 6, generator=generator),
            "kind": torch.randint(5, (20,), generator=generator),
            "labels": torch.randint(3, (20,), generator=generator),
        }
        for _ in range(4)
    ]


@pytest.mark.parametrize("own", [False, True], ids=["labels", "own outputs"])
def test_mappings_go_in_by_keywords(own: bool) -> None:
    net, batches = Answers().eval(), mappings()
    loss = pr.own_outputs(net) if own else None
    found = pr.compress(net, batches[:2], loss, validate=batches[2:], max_loss_increase=0.01, small_bits=0)
    assert found.chosen is not None
    assert found.bytes < found.base_bytes / 2
    kept = Objective(loss or (lambda one, batch: one(**batch)["loss"]), batches[2:])
    assert kept(found.net) == found.loss <= kept(net) + 0.01
    if own:
        assert found.base_loss == 0


def test_own_outputs_is_a_relative_squared_distance() -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(7, 4)
    loss, first = pr.own_outputs(net), net(x).detach()
    for batch in (x, (x, torch.zeros(7)), [x]):
        assert loss(net, batch) == 0
        assert torch.allclose(loss(other, batch), (other(x) - first).square().sum() / first.square().sum())
    with torch.no_grad():
        net.weight.zero_()
    assert loss(net, x) > 0  # the original is a copy
    scaled = pr.own_outputs(net, call=lambda one, batch: one(2 * batch))
    assert scaled(net, x) == 0
    one, two = nn.Sequential(other, Unit()), nn.Sequential(nn.Linear(4, 3), Unit())
    cosine = (one(x) * two(x)).sum(1).mean()
    assert torch.allclose(pr.own_outputs(one)(two, x), 2 * (1 - cosine), atol=1e-6)
    with pytest.raises(ValueError, match="answers a str"):
        pr.own_outputs(Says())(Says(), x)


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Says(nn.Module):
    def forward(self, _: Tensor) -> str:
        return "no tensor"


def test_a_loader_and_batches_of_two_sizes_weigh_every_example_alike() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x, y = torch.randn(50, 6), torch.randint(3, (50,))
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    found = pr.compress(net, loader, max_loss_increase=math.inf, compressor=Uniform((6,)))
    assert abs(found.base_loss - F.cross_entropy(net(x), y).item()) < 1e-6


def test_learning_compressors_train_on_the_batches() -> None:
    net, batches = Answers().eval(), mappings()
    found = pr.compress(
        net, batches, max_loss_increase=1.0, compressor=EntropyRounding((1e-4,), epochs=2), small_bits=0
    )
    assert found.chosen is not None
    assert not torch.equal(found.net.one.bias, net.one.bias)


def test_a_wider_bound_gives_a_smaller_file() -> None:
    net, batches = Answers().eval(), mappings()
    sizes = [
        pr.compress(net, batches, pr.own_outputs(net), max_loss_increase=bound, small_bits=0).bytes
        for bound in (1e-4, 1e-2, 0.3)
    ]
    assert sizes == sorted(sizes, reverse=True)
    plain = pr.compress(
        net, batches, pr.own_outputs(net), max_loss_increase=1e-2, compressor=GridRounding(), small_bits=0
    )
    assert sizes[1] <= plain.bytes
