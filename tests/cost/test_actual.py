"""measure and report on real networks, against sums worked out by hand and against a safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from paring.analysis.wiring import wiring
from paring.cost import CostModel, Openness, measure, report
from reference.cost import lenet5


def lenet(conv1: int = 20, conv2: int = 50, fc1: int = 500) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, conv1, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(conv1, conv2, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(conv2 * 16, fc1),
        nn.ReLU(),
        nn.Linear(fc1, 10),
    )


class Tied(nn.Module):
    """An embedding whose table is the output layer, a norm, a free parameter, buffers of both sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.words.weight
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("kept", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("lost", torch.zeros(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.norm(self.words(x)) + self.shift)
        return y


def test_lenet5() -> None:
    got = measure(lenet(), torch.zeros(2, 1, 28, 28))
    want = CostModel(lenet5())()
    assert [row.macs for row in got.rows] == [288_000, 1_600_000, 400_000, 5_000]
    assert (got.parameters, got.macs, got.adds) == (431_080, int(want.macs), int(want.adds))
    assert got.flops == int(want.flops)
    assert got.bytes == 4 * 431_080
    assert [row.units for row in got.rows] == [20, 50, 500, 10]
    assert got.uncounted == ()


@pytest.mark.parametrize(
    ("conv", "positions"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), 5 * 4),
        (nn.Conv2d(4, 6, 3, padding="same", groups=2), 9 * 7),
        (nn.Conv2d(4, 4, (3, 1), dilation=2, groups=4, bias=False), 5 * 7),
        (nn.Conv2d(4, 8, 1, stride=3, bias=False), 3 * 3),
    ],
)
def test_convolutions_count_outputs_times_window(conv: nn.Conv2d, positions: int) -> None:
    net, x = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(conv.out_channels, 2, 1)), torch.randn(2, 4, 9, 7)
    out = conv(x)
    assert out[0, 0].numel() == positions
    row = measure(net, x).rows[0]
    assert row.macs is not None
    window = 4 // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]
    assert row.macs == out[0].numel() * window
    assert row.adds == row.macs + (out[0].numel() if conv.bias is not None else 0)


def test_expected_and_actual_agree_when_everything_is_open() -> None:
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 4, 3, groups=2),
        nn.Flatten(),
    )
    net.append(nn.Linear(4 * 6, 5))
    x = torch.randn(2, 3, 8)
    expected, actual = CostModel.of(net, wiring(net, x))(), measure(net, x)
    assert int(expected.parameters) == actual.parameters == sum(p.numel() for p in net.parameters())
    assert (int(expected.macs), int(expected.adds)) == (actual.macs, actual.adds)


class Residual(nn.Module):
    """Stem, one block of two convolutions with norms, classifier; ``inner`` is the block's hidden width."""

    def __init__(self, inner: int, stream: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stream)
        self.a, self.bn_a = nn.Conv2d(stream, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.b, self.bn_b = nn.Conv2d(inner, stream, 3, stride=1, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.fc = nn.Linear(stream, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn_b(self.b(self.bn_a(self.a(x)).relu()))).relu()
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def assert_costs_as_much(net: nn.Module, openness: Openness, small: nn.Module, x: Tensor) -> None:
    expected, actual = CostModel.of(net, wiring(net, x))(openness), measure(small, x)
    assert int(expected.parameters) == actual.parameters
    assert (int(expected.macs), int(expected.adds)) == (actual.macs, actual.adds)


def test_support_costs_what_the_really_smaller_network_costs() -> None:
    def support(size: int, kept: int) -> Tensor:
        return (torch.randperm(size, generator=torch.Generator().manual_seed(size)) < kept).float()

    units = {"0": support(20, 9), "3": support(50, 18), "7": support(500, 65)}
    assert_costs_as_much(lenet(), Openness(units=units), lenet(9, 18, 65), torch.zeros(2, 1, 28, 28))
    x = torch.randn(2, 3, 6, 6)
    assert_costs_as_much(Residual(8), Openness(units={"a": support(8, 3)}), Residual(3), x)
    assert_costs_as_much(Residual(8), Openness(inputs={"b": support(8, 3)}), Residual(3), x)
    stream = dict.fromkeys(("stem", "b"), torch.tensor([1.0, 0.0, 1.0, 0.0]))  # a residual add: one gate for both
    assert_costs_as_much(Residual(8), Openness(units=stream), Residual(8, stream=2), x)


def test_ties_buffers_and_norms(tmp_path: Path) -> None:
    net = Tied()
    with torch.no_grad():
        net.words.weight[0] = 0
        net.words.weight[1] = 1
        net.words.weight[2:] = torch.rand(5, 4) + 0.5
        net.out.bias.fill_(-1)
    got = measure(net, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert got.parameters == 28 + 7 + 8 + 4
    assert got.nonzeros == 24 + 7 + 4 + 0  # the norm's scale is one, its shift and the free parameter are zero
    assert got.bytes == 4 * 47 + 3 * 8
    assert {row.name: (row.parameters, row.macs) for row in got.rows} == {
        "": (4, 0),
        "words": (28, 0),
        "norm": (8, 0),
        "out": (7, 3 * 28),
    }
    assert got.adds == 3 * 28 + 3 * 7


def test_bytes_are_those_of_a_safetensors_file() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 9, 2).half())
    data = save(net.state_dict())
    header = 8 + int.from_bytes(data[:8], "little")
    assert measure(net).bytes == len(data) - header


def test_without_an_example_arithmetic_is_unknown() -> None:
    got = report(lenet())
    assert (got.measured.macs, got.measured.adds, got.measured.flops) == (None, None, None)
    assert got.total["macs"] is None
    assert got.total["parameters"] == 431_080
    assert [row["macs"] for row in got.rows] == [None] * 4
    assert str(got).splitlines()[-1].split() == ["total", "431,080", "431,080", "-", "1,724,320"]


def test_what_was_not_traced_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.table = nn.Linear(3, 2), nn.Parameter(torch.eye(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x) @ torch.linalg.inv(self.table)
            return y

    got = report(Odd(), torch.zeros(1, 3))
    assert got.measured.uncounted == ("Odd (linalg_inv)",)
    assert got.total["macs"] == 6 + 4
    assert "MACs without Odd (linalg_inv)" in str(got)


def test_table() -> None:
    first, last = nn.Linear(3, 2), nn.Linear(2, 1, bias=False)
    net = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        first.weight.fill_(0)
        first.bias.fill_(1)
        last.weight.fill_(2)
    lines = str(report(net, torch.zeros(4, 3), title="tiny")).splitlines()
    assert lines[0] == "tiny"
    assert lines[1].split() == ["layer", "kind", "units", "weight", "parameters", "nonzeros", "MACs", "bytes"]
    assert lines[3].split() == ["0", "Linear", "2", "2x3", "8", "2", "6", "32"]
    assert lines[4].split() == ["2", "Linear", "1", "1x2", "2", "2", "2", "8"]
    assert lines[6].split() == ["total", "10", "4", "8", "40"]
    assert len(lines) == 7
    assert len({len(line) for line in lines[1:]}) == 1  # columns line up


def test_to_dict_is_plain_data() -> None:
    data = report(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3), latency=True).to_dict()
    again = json.loads(json.dumps(data))
    assert again["title"] == "Sequential"
    assert again["total"] == {"parameters": 8, "nonzeros": data["total"]["nonzeros"], "macs": 6, "adds": 8, "bytes": 32}
    assert again["rows"][0]["weight"] == [2, 3]
    assert again["latency"]["batch"] == 4
    assert again["latency"]["p10"] <= again["latency"]["median_s"] <= again["latency"]["p90"]


def test_latency_in_the_table() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    assert "at batch 4, one thread" in str(report(net, torch.zeros(4, 3), latency=True)).splitlines()[-1]
    with pytest.raises(ValueError, match="needs an example"):
        report(net, latency=True)


def test_a_network_that_lost_everything() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.Identity())
    net[0].weight = nn.Parameter(torch.empty(2, 0))
    got = measure(net)
    assert (got.parameters, got.bytes, got.rows[0].weight) == (2, 8, (2, 0))
