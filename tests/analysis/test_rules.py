"""Removal through the operations between layers: how many units go, and that the function stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.removal import compact

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.parts, x)


def squeeze_excite(net: nn.Module, x: Tensor) -> Tensor:
    h = F.silu(net["a"](x))
    h = h * torch.sigmoid(net["up"](F.relu(net["down"](h.mean((2, 3))))))[:, :, None, None]
    return net["out"](net["b"](h).amax((2, 3)))


def dense(net: nn.Module, x: Tensor) -> Tensor:
    x = torch.cat([x, torch.relu(net["a"](x))], 1)
    return net["out"](F.adaptive_max_pool2d(torch.cat([x, net["b"](x).sigmoid()], 1), 2).flatten(1))


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    h = net["a"](x)
    y = h.view(len(h), -1)
    y += 1.0  # h changes too: its dead units are ones from here on
    return net["out"](h)


def circular(net: nn.Module, x: Tensor) -> Tensor:
    return net["out"](net["b"](torch.sigmoid(net["a"](x))).mean((2, 3)))


def spatial_pad(net: nn.Module, x: Tensor) -> Tensor:
    return net["out"](net["b"](F.pad(torch.sigmoid(net["a"](x)), (1, 1, 0, 2), value=0.5)).mean((2, 3)))


def tokens(net: nn.Module, x: Tensor) -> Tensor:
    h = F.gelu(net["a"](net["emb"](x)))
    return net["out"](net["norm"](net["b"](h)).transpose(1, 2).flatten(1))


def clipped(net: nn.Module, x: Tensor) -> Tensor:
    h = F.hardtanh(net["a"](x), -2.0, 3.0).clamp(min=-1).pow(2) / 2 - 1
    return net["out"](torch.maximum(h, h * 0.5).unsqueeze(2).repeat(1, 1, 2).flatten(1).to(x.dtype))


IMAGE, ROW, WORDS = torch.randn(2, 3, 6, 6), torch.randn(2, 4), torch.randint(0, 7, (2, 5))
CASES = [
    (
        squeeze_excite,
        IMAGE,
        {
            "a": nn.Conv2d(3, 8, 3, padding=1),
            "down": nn.Linear(8, 4),
            "up": nn.Linear(4, 8),
            "b": nn.Conv2d(8, 6, 3),
            "out": nn.Linear(6, 2),
        },
        ["a", "down", "b"],
        {"a": 4, "down": 2, "up": 4, "b": 3},  # a and up only ever go together
    ),
    (
        dense,
        IMAGE,
        {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(9, 4, 3, padding=1), "out": nn.Linear(52, 2)},
        ["a", "b"],
        {"a": 3, "b": 2},  # zeros into padding, constants into a linear layer
    ),
    (in_place, ROW, {"a": nn.Linear(4, 6), "out": nn.Linear(6, 2, bias=False)}, ["a"], {"a": 3}),
    (
        circular,
        IMAGE,
        {
            "a": nn.Conv2d(3, 6, 3),
            "b": nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
            "out": nn.Linear(4, 2),
        },
        ["a", "b"],
        {"a": 3, "b": 2},  # what is constant stays constant around the corner
    ),
    (
        spatial_pad,
        IMAGE,
        {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 4, 3), "out": nn.Linear(4, 2)},
        ["a"],
        {"a": 3, "b": 4},  # sigmoid(0) is the padding value
    ),
    (
        tokens,
        WORDS,
        {
            "emb": nn.Embedding(7, 8),
            "a": nn.Linear(8, 6),
            "b": nn.Linear(6, 4),
            "norm": nn.LayerNorm(4),
            "out": nn.Linear(20, 2),
        },
        ["emb", "a", "b"],
        {"emb": 4, "a": 3, "b": 4},  # a LayerNorm sees all its units
    ),
    (clipped, ROW, {"a": nn.Linear(4, 6), "out": nn.Linear(12, 2)}, ["a"], {"a": 3}),
]


@pytest.mark.parametrize(("forward", "x", "parts", "dead", "left"), CASES, ids=[case[0].__name__ for case in CASES])
def test_every_second_unit_dead(
    forward: Forward, x: Tensor, parts: dict[str, nn.Module], dead: list[str], left: dict[str, int]
) -> None:
    net = Net(forward, **parts).eval()
    with torch.no_grad():
        for name in dead:
            layer = parts[name]
            (layer.weight.T if isinstance(layer, nn.Embedding) else layer.weight)[::2] = 0
            if getattr(layer, "bias", None) is not None:
                layer.bias[::2] = 0
    small, report = compact(net, x)
    assert not report.rolled_back
    assert report.verified
    assert {row.layer.removeprefix("parts."): row.after for row in report.rows if row.layer != "parts.out"} == left
    y = net(x).detach()
    assert torch.allclose(y, small(x), atol=1e-5 * float(y.abs().max()))


def test_dropout_in_train_mode_leaves_only_zeros_known() -> None:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 2)
    )
    with torch.no_grad():
        net[0].weight[:3] = 0  # 0.5 or 1 or 0 after dropout: stays in train mode
        net[3].weight[:2], net[3].bias[:2] = 0, 0
    assert [row.after for row in compact(net.train(), ROW)[1].rows] == [6, 2, 2]
    assert [row.after for row in compact(net.eval(), ROW)[1].rows] == [3, 2, 2]


def test_around_lstm_and_attention_the_rest_shrinks() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(4, 6), nn.LSTM(6, 4, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.lstm(self.first(x))[0])

    net = Words().eval()
    with torch.no_grad():
        for layer in (net.first, net.encoder.linear1):
            layer.weight[::2], layer.bias[::2] = 0, 0
    small, report = compact(net, torch.randn(2, 5, 4))
    rows = {row.layer: row for row in report.rows}
    assert rows["first"].after == 3
    assert small.lstm.input_size == 3
    assert rows["encoder.linear1"].after == 4
    assert small.encoder.linear2.in_features == 4
    assert not report.rolled_back


def test_reduced_precision_networks() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).bfloat16().eval()
    with torch.no_grad():
        net[0].weight[1:4] = 0  # constants of relu(bias)
    small, report = compact(net, ROW.bfloat16())
    assert report.rows[0].after == 3
    assert small[2].bias.dtype == torch.bfloat16


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_sum_over_units_reads_all_but_zeros(keepdim: bool) -> None:
    torch.manual_seed(0)

    def towers(net: nn.Module, x: Tensor) -> Tensor:
        return (
            torch.relu(net["a"](x[:, :5]) * net["b"](x[:, 5:])).sum(-1, keepdim)
            - net["c"](x).sigmoid().sum((-1,))[:, None]
        )

    net = Net(towers, a=nn.Linear(5, 8), b=nn.Linear(5, 8), c=nn.Linear(10, 6)).double().eval()
    with torch.no_grad():
        for name, units in (("a", [0, 3]), ("b", [3, 6]), ("c", [2])):
            net.parts[name].weight[units], net.parts[name].bias[units] = 0, 0
        net.parts["a"].weight[7] = 0  # a constant is added: it stays
    small, report = compact(net, torch.randn(3, 10).double())
    assert not report.rolled_back
    assert [row.after for row in report.rows] == [5, 5, 6]  # the sigmoid of zero is added as well
    x = torch.randn(7, 10).double()
    assert torch.allclose(net(x), small(x), rtol=0, atol=1e-10)


def test_numbers_that_are_stacked_are_no_units() -> None:
    def losses(net: nn.Module, x: Tensor) -> Tensor:
        y = net["b"](torch.relu(net["a"](x)))
        return torch.stack([y.sum(), y.mean(), torch.stack([y[:, 0], y[:, 1]], -1).square().sum()])

    torch.manual_seed(0)
    net = Net(losses, a=nn.Linear(4, 6), b=nn.Linear(6, 2)).double().eval()
    with torch.no_grad():
        net.parts["a"].weight[2], net.parts["a"].bias[2] = 0, 0
    small, report = compact(net, torch.randn(3, 4).double())
    assert [row.after for row in report.rows] == [5, 2]
    x = torch.randn(5, 4).double()
    assert torch.allclose(net(x), small(x), rtol=0, atol=1e-10)


class Viewed(nn.Module):
    """`view` of channels-last activations, whose strides labels do not have; and a view of the bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 4)
        self.bits = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().permute(0, 2, 3, 1)
        if self.bits:
            y = y.view(torch.int32).view(torch.float32)
        found: Tensor = self.out(y.view(len(x), -1))
        return found


@pytest.mark.parametrize(("bits", "left"), [(False, 5), (True, 8)])
def test_views_of_other_strides_move_units_and_views_of_bits_stop_them(bits: bool, left: int) -> None:
    torch.manual_seed(0)
    net = Viewed().eval().to(memory_format=torch.channels_last)
    net.bits = bits
    with torch.no_grad():
        net.conv.weight[:3], net.conv.bias[:3] = 0, 0
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    small, _ = compact(net, x)
    assert small.conv.out_channels == left
    assert torch.allclose(small(x), net(x), atol=1e-6)
