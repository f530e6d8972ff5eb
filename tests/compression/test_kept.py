"""What a compressor leaves alone, and that it never returns more than it was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.compression import (
    AdaptivePrecision,
    Codebooks,
    Combined,
    Compressor,
    DeepCompression,
    EntropyRounding,
    Hashed,
    KMeans,
    Objective,
    Smallest,
    SoftSharing,
    Stage,
    Training,
    compress,
)
from paring.compression.tensors import is_binary, unique
from paring.compression.through_file import through_file
from paring.methods import Dense
from tests.compression.nets import problem


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def half_binary() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    with torch.no_grad():
        net[2].weight.copy_(torch.where(net[2].weight < 0, -0.1, 0.1))
    return net


@pytest.mark.parametrize(
    "compressor",
    [
        EntropyRounding((1e-6,), epochs=2),
        Codebooks(8, rounds=2),
        DeepCompression((0.5,), epochs=1),
        SoftSharing(components=5, zero=0.5, rates=(1e-5,), epochs=1),
        AdaptivePrecision(rounds=2, retrain=0.5),
        Combined((Stage(Dense(), 1), Stage(Dense(), 1)), Codebooks(8, rounds=2)),
    ],
    ids=lambda one: one.name,
)
def test_learning_leaves_binary_weights_as_they_are(compressor: Compressor) -> None:
    net = half_binary()
    objective, _, training = problem(*data())
    found = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=10.0,
        compressor=compressor,
        training=training,
        example=data()[0][:2],
    )
    assert found.chosen is not None
    weights = [p for name, p in found.net.named_parameters() if name.startswith("2") and p.dim() == 2]
    assert torch.equal(weights[0], net.get_parameter("2.weight"))


@pytest.mark.parametrize("fill", [0.0, 0.25])
def test_nothing_is_larger_than_as_it_was_given(fill: float) -> None:
    net = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(fill)
    objective, _, training = problem(*data())
    found = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=1.0,
        compressor=EntropyRounding((1e-6,), epochs=1),
        training=training,
    )
    assert found.bytes <= through_file(net)[1]
    if found.chosen is None:
        assert all(torch.equal(a, b) for a, b in zip(found.net.parameters(), net.parameters(), strict=True))


def test_a_column_of_weights_is_not_binary() -> None:
    assert not is_binary(torch.tensor([[0.1], [0.2], [-0.3]]))
    assert is_binary(torch.tensor([[0.1], [-0.1]]))
    assert is_binary(torch.tensor([[0.1, -0.1], [0.2, 0.2]]))
    x = torch.linspace(-3, 3, 100)[:, None]
    net = nn.Sequential(nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 1))
    objective = Objective.of(F.mse_loss, x, x.sin())
    found = compress(
        net, objective.batches, objective.loss, max_loss_increase=5.0, compressor=KMeans((4,)), small_bits=0
    )
    assert len(found.net.get_parameter("0.weight").unique()) <= 4


def test_no_batch_is_a_single_example() -> None:
    x, y = data()
    training = Training.of(F.cross_entropy, x[:101], y[:101], batch=50)
    assert training.steps == 2
    assert [len(batch[0]) for batch in training.batches(0)] == [50, 51]
    assert Training.of(F.cross_entropy, x[:1], y[:1], batch=50).steps == 1
    assert Training.of(F.cross_entropy, x[:3], y[:3], batch=1).steps == 3
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    objective = Objective.of(F.cross_entropy, x, y)
    compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=9.0,
        compressor=Smallest(epochs=1.0, rates=(1e-6,)),
        training=training,
    )


def test_refusals() -> None:
    x, y = data()
    objective, _, training = problem(x, y)

    def go(net: nn.Module, compressor: Compressor) -> None:
        compress(
            net, objective.batches, objective.loss, max_loss_increase=1.0, compressor=compressor, training=training
        )

    for rates in ((float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match="has to be finite"):
            go(half_binary(), Smallest(rates=rates))
    with pytest.raises(ValueError, match="one of layer, kind, global"):
        KMeans(scope="foo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of layer, kind, global"):
        Codebooks(scope="foo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out of range"):
        EntropyRounding(lr=-1.0)
    with pytest.raises(ValueError, match="takes float32"):
        compress(
            half_binary().half(),
            [(x.half(), y)],
            max_loss_increase=1.0,
            compressor=Smallest(),
            training=training,
        )

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(8, 6, batch_first=True)
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.cell(x[:, None])[0][:, -1])
            return found

    with pytest.raises(ValueError, match="recurrent layers"):
        go(Recurrent(), Hashed())
    go(Recurrent(), EntropyRounding((1e-6,), epochs=1.0))


def test_many_tensors_are_listed_once() -> None:
    net = nn.Sequential(*[nn.Linear(1, 1) for _ in range(1500)])
    assert len(unique(net)) == 3000
