"""What rounding does where its first steps break the bound: finer ones, and a step for each row, before it gives up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.compression import (
    AdaptivePrecision,
    Compressor,
    DeepCompression,
    EntropyRounding,
    GridRounding,
    KMeans,
    Objective,
    Uniform,
    compress,
)
from paring.compression.step_sizes import largest, mean_square, short, spread
from paring.compression.through_file import through_file
from paring.files.pare import levels
from tests.compression.nets import exactly, task_of


class Scales(nn.Module):
    """Rows whose sizes differ by so much that no step for all of them is of use, read by a sum of their signs and sizes."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(3))
        self.weight = nn.Parameter(weight * torch.logspace(-math.log10(ratio), 0, 12)[:, None])
        self.first = self.weight.detach().clone()

    def distance(self) -> Tensor:
        """The largest of the rows' relative errors."""
        apart: Tensor = (self.weight - self.first).norm(dim=1) / self.first.norm(dim=1)
        return apart.max()


def recurrent() -> tuple[nn.Module, Objective]:
    """An LSTM in the middle of its training, and its loss."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 12, batch_first=True)
            self.out = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.rnn(x)[0][:, -1])
            return found

    torch.manual_seed(0)
    net, x = Reader(), torch.randn(64, 5, 4)
    y = x[:, :, 0].sum(1).gt(0).long() + x[:, -1, 1].gt(1).long()
    opt = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(40):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return net.eval(), Objective.of(F.cross_entropy, x, y)


@pytest.mark.parametrize("compressor", [GridRounding((1.0, 2.0)), Uniform((3, 2))], ids=lambda one: one.name)
def test_finer_steps_are_tried_before_it_gives_up(compressor: Compressor) -> None:
    net, objective = recurrent()
    found = compress(
        net, objective.batches, objective.loss, max_loss_increase=1e-3, compressor=compressor, small_bits=0
    )
    assert not found.steps[0].within
    assert found.chosen is not None
    assert found.loss <= found.base_loss + 1e-3
    assert not found.reason
    assert found.bytes < found.base_bytes / 2.5  # float32 takes 32 bits a weight, these about 10
    decoded, size = through_file(found.net)
    assert size == found.bytes
    assert objective(decoded) == found.loss
    tensors = [step for step in found.steps if "per_row" not in step.settings]
    assert sum(step.within for step in tensors[1:]) >= 1
    assert any(step.within for step in found.steps if "per_row" in step.settings)
    assert found.bytes == min(step.bytes for step in found.steps if step.within)


@pytest.mark.parametrize("compressor", [GridRounding(), Uniform()], ids=lambda one: one.name)
def test_rows_of_other_sizes_have_steps_of_their_own(compressor: Compressor) -> None:
    net = Scales(1e7)
    objective = Objective(lambda one, _: one.distance(), [None])
    found = compress(net, objective.batches, objective.loss, max_loss_increase=0.05, compressor=compressor)
    assert found.chosen is not None
    assert "per_row" in found.chosen.settings
    assert not any(step.within for step in found.steps if "per_row" not in step.settings)
    assert found.bytes < found.base_bytes / 3.2
    assert through_file(net)[1] > 0.8 * found.base_bytes


def test_where_the_first_steps_do_the_search_is_as_before() -> None:
    """Offers in the order of the lists, to the first that breaks the bound, and nothing else."""
    net, objective, _, _ = task_of("mlp")
    steps, prices = (0.1, 0.2, 0.5), (0.0, 0.2)
    found = compress(
        net, objective.batches, objective.loss, max_loss_increase=math.inf, compressor=GridRounding(steps, prices)
    )
    assert [dict(step.settings) for step in found.steps] == [{"step": s, "price": p} for s in steps for p in prices]
    found = compress(net, objective.batches, objective.loss, max_loss_increase=math.inf, compressor=Uniform((4, 8, 2)))
    assert [dict(step.settings) for step in found.steps] == [{"bits": b} for b in (8, 4, 2)]
    found = compress(net, objective.batches, objective.loss, max_loss_increase=0.02, compressor=Uniform(), small_bits=0)
    tried = [step.within for step in found.steps]
    assert tried == [True] * (len(tried) - 1) + [False]


@pytest.mark.parametrize(
    "compressor",
    [
        GridRounding((1.0,), (0.0,)),
        Uniform((2,)),
        KMeans((4,)),
        AdaptivePrecision(rounds=2),
        DeepCompression((0.5,), epochs=0.2, tune=0.2),
        EntropyRounding((1e-6,), epochs=0.2),
    ],
    ids=lambda one: one.name,
)
def test_giving_up_is_said_in_a_warning_and_in_the_result(compressor: Compressor) -> None:
    net, _, _, training = task_of("mlp")
    with pytest.warns(pr.ParingWarning, match=r"compress: .* so the network comes back as it was given, [\d,]+ bytes"):
        found = compress(
            net, [None], exactly(net).loss, max_loss_increase=0.5, compressor=compressor, training=training
        )
    assert found.chosen is None
    assert found.loss == 0
    assert "kept the bound; the nearest has loss 1 (at most 0.5)" in found.reason or not found.steps
    assert found.reason


def test_what_is_small_already_is_a_reason_and_no_warning() -> None:
    net = nn.Linear(64, 64)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    objective = Objective(lambda one, _: one.bias.sum(), [None])
    found = compress(
        net, objective.batches, objective.loss, max_loss_increase=1.0, compressor=KMeans((2,)), small_bits=0
    )
    assert (found.chosen is None) == bool(found.reason)
    if found.chosen is None:
        assert "the network as it is" in found.reason


@pytest.mark.parametrize("shape", [(5, 7), (30, 3), (4, 3, 5, 5), (200, 300)])
@pytest.mark.parametrize("rows", [False, True])
def test_files_hold_levels_of_short_steps(shape: tuple[int, ...], rows: bool) -> None:
    """Levels of any size up to 2047 times a step of eleven bits are found again, for the tensor or for each row."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64) * torch.rand(
        shape[0], generator=generator
    ).view(-1, *[1] * (len(shape) - 1)).add(0.01)
    for most in (31, 500, 2047):
        step = short(spread(largest, weight, rows) / most)
        level = (weight / step).round() + 0.0
        assert int(level.abs().max()) <= most
        entries = (level * step).float()
        assert torch.equal(entries.double(), level * step)
        if 2 * most + 1 > 4 * weight.numel():
            continue  # hardly a level comes twice: numbers as they are take no more
        found = levels.find(entries.numpy().view(np.uint32))
        assert found is not None
        assert found.kind in ("grid", "rows")
        assert found.size <= 2 * most + 1


def test_other_numbers_are_no_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((50, 2), (50, 9), (3, 400)):
        for weight in (
            torch.randn(*shape, generator=generator),
            torch.randn(*shape, generator=generator).half().float(),
        ):
            found = levels.find(weight.numpy().view(np.uint32))
            assert found is None or found.kind == "table"


def test_steps_are_short_and_not_smaller() -> None:
    step = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = short(step)
    assert bool((found >= step).all())
    assert bool((found <= step * (1 + 2**-10)).all())
    mantissa, _ = torch.frexp(found)
    assert torch.equal(mantissa * 2**11, (mantissa * 2**11).round())
    assert torch.equal(short(torch.zeros(2, dtype=torch.float64)), torch.zeros(2, dtype=torch.float64))


def test_sizes_of_tensors_and_rows() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-12.0, 5.0]])
    assert torch.equal(spread(largest, weight, True), torch.tensor([[4.0], [0.0], [12.0]], dtype=torch.float64))
    assert float(spread(largest, weight, False)) == 12.0
    assert torch.allclose(spread(mean_square, weight, True).flatten() ** 2, torch.tensor([12.5, 0, 84.5]).double())
    assert spread(largest, torch.zeros(3, 2, 1, 1), True).shape == (3, 1, 1, 1)
    assert float(spread(largest, torch.zeros(0, 4), False)) == 0.0
