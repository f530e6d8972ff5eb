"""Dead units that user situations leave behind: all of them go, exactly, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core.file_error import FileError
from paring.core.written_sizes import write_sizes
from paring.files import load, save
from paring.removal import Report, compact


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def kill(layer: nn.Module, units: Iterable[int], dim: int = 0) -> None:
    """Zero weights and biases of these units."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.index_fill_(dim if parameter.dim() > 1 else 0, torch.tensor(list(units), dtype=torch.int64), 0.0)


def shrunk(net: nn.Module, *inputs: Tensor) -> tuple[nn.Module, Report]:
    """The small network, nothing rolled back, with the same outputs."""
    small, report = compact(net, inputs)
    assert not report.rolled_back, report
    torch.testing.assert_close(small(*inputs), net(*inputs), rtol=1e-12, atol=1e-12)
    return small, report


class NormedHeads(nn.Module):
    """Attention whose queries and keys are normalised within each head, as a module, a function or by hand."""

    def __init__(self, how: str, heads: int = 4, size: int = 6, width: int = 10) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, width)
        self.norm = nn.LayerNorm(size) if how == "layer" else nn.RMSNorm(size)

    def normed(self, x: Tensor) -> Tensor:
        if self.how == "by hand":
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.norm.weight
        return F.normalize(x, dim=-1) if self.how == "unit length" else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.normed(q), self.normed(k), v)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


def test_heads_go_through_norms_within_a_head() -> None:
    for how in ("layer", "rms", "by hand", "unit length"):
        torch.manual_seed(0)
        net = NormedHeads(how).double().eval()
        kill(net.v, range(6, 12))
        small, _ = shrunk(net, torch.randn(2, 5, 10, dtype=torch.float64))
        assert count(small) == count(net) - 3 * 11 * 6 - 6 * 10, how


class Siamese(nn.Module):
    """One encoder called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        made: Tensor = (self.enc(a) - self.enc(b)).pow(2).sum(1)
        return made


def test_units_that_are_dead_at_every_call_go() -> None:
    torch.manual_seed(0)
    net = Siamese().double().eval()
    kill(net.enc[0], range(16))
    small, _ = shrunk(net, torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64))
    assert count(small) == 8 * 16 + 16 + 16 * 4 + 4


class Rounds(nn.Module):
    """A block of layers run several times, on its own output; its first reading may come from another layer."""

    def __init__(self, start: str = "layer", times: int = 3) -> None:
        super().__init__()
        self.first, self.times, self.start = nn.Conv2d(3, 6, 3, padding=1), times, start
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.slope, self.last = nn.PReLU(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) if self.start == "layer" else torch.cat([x, x.roll(1, 2)], 1)
        for _ in range(self.times):
            h = self.slope(self.norm(self.conv(h)))
        made: Tensor = self.last(h)
        return made


def test_units_that_loops_read_again_go_when_they_are_dead_everywhere() -> None:
    for start, left in (("layer", 4), ("input", 6)):
        torch.manual_seed(0)
        net = Rounds(start).double().eval()
        for layer in (net.first, net.conv, net.norm):
            kill(layer, [1, 4])
        small, _ = shrunk(net, torch.randn(2, 3, 5, 5, dtype=torch.float64))
        assert small.get_parameter("conv.weight").shape[:2] == (left, left), start


def test_a_unit_that_one_call_reads_stays() -> None:
    torch.manual_seed(0)
    net = Rounds().double().eval()
    kill(net.conv, [1, 4])
    kill(net.norm, [1, 4])
    kill(net.first, [1])
    small, _ = shrunk(net, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert small.get_parameter("conv.weight").shape[:2] == (5, 5)


def test_constants_fold_only_where_every_call_reads_the_same_one() -> None:
    for values, left in (((0.5, 0.5), 2), ((0.5, 0.25), 3)):
        torch.manual_seed(0)
        net = Fed(values).double().eval()
        small, report = shrunk(net, torch.randn(3, 4, dtype=torch.float64))
        assert small.get_parameter("reader.weight").shape == (2, left), report


class Fed(nn.Module):
    """One reader called on two layers; their unit 1 is always the first and the second value."""

    def __init__(self, values: tuple[float, float]) -> None:
        super().__init__()
        self.a, self.b, self.reader = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2, bias=False)
        for layer, value in zip((self.a, self.b), values, strict=True):
            kill(layer, [1])
            layer.bias.data[1] = value

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.reader(self.a(x)) * self.reader(self.b(x))
        return made


class Generator(nn.Module):
    """A vector becomes a small map of channels, which convolutions read; numbers: the sizes are written down."""

    def __init__(self, numbers: bool, norm: bool) -> None:
        super().__init__()
        self.fc, self.numbers = nn.Linear(10, 16 * 16), numbers
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.a, self.b = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.norm(self.fc(z).view(-1, 16 if self.numbers else self.a.in_channels, 4, 4)))
        return torch.tanh(self.b(F.relu(self.a(x))))


def test_a_linear_layer_seen_as_channels_loses_dead_ones() -> None:
    for numbers, norm in ((False, False), (True, False), (False, True), (True, True)):
        torch.manual_seed(0)
        net = Generator(numbers, norm).double().eval()
        kill(net.a, [0, 5, 6], 1)
        kill(net.fc, [16 * c + i for c in (2, 3, 9) for i in range(16)])
        kill(net.fc, range(80, 90))  # not all of channel 5
        if norm:
            kill(net.norm, [2, 3, 9])
        small, report = shrunk(net, torch.randn(4, 10, dtype=torch.float64))
        assert count(small) == (10 * 208 + 208) + norm * 26 + (13 * 5 * 16 + 5) + (5 * 3 * 16 + 3), (numbers, norm)
        assert report.form == ("graph" if numbers else "module")
        assert small(torch.randn(7, 10, dtype=torch.float64)).shape == (7, 3, 16, 16)


class Cross(nn.Module):
    """Cross-attention with a stock layer, a feed-forward part behind it; kdim: separate projections."""

    def __init__(self, kdim: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.MultiheadAttention(16, 4, batch_first=True, kdim=kdim, vdim=kdim, bias=bias)
        self.f1, self.f2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, q: Tensor, m: Tensor) -> Tensor:
        made: Tensor = self.f2(F.relu(self.f1(self.a(q, m, m, need_weights=False)[0] + q)))
        return made


def test_a_dead_head_of_cross_attention_goes() -> None:
    for bias in (True, False):
        torch.manual_seed(0)
        net = Cross(bias=bias).double().eval()
        kill(net.f1, range(8))
        with torch.no_grad():
            net.a.in_proj_weight[32 + 4 : 32 + 8] = 0
            if net.a.in_proj_bias is not None:
                net.a.in_proj_bias[32 + 4 : 32 + 8] = 0
        q, m = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
        small, _ = shrunk(net, q, m)
        assert count(small) == count(net) - 8 * 17 - 16 * 8 - 3 * 4 * (16 + bias) - 4 * 16


def test_a_dead_head_goes_where_only_the_bias_is_in_parts() -> None:
    torch.manual_seed(0)
    net = Cross(kdim=6).double().eval()
    with torch.no_grad():
        net.a.v_proj_weight[4:8] = 0
        net.a.in_proj_bias[32 + 4 : 32 + 8] = 0
    q, m = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 6, dtype=torch.float64)
    small, _ = shrunk(net, q, m)
    assert count(small) == count(net) - 4 * (16 + 6 + 6) - 3 * 4 - 4 * 16


def test_dead_heads_of_a_decoder_layer_go_in_train_mode_too() -> None:
    torch.manual_seed(0)
    net = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, dropout=0.0).double()
    kill(net.linear1, range(8))
    with torch.no_grad():
        for part, head in ((net.self_attn, 0), (net.multihead_attn, 2)):
            part.in_proj_weight[32 + 4 * head : 36 + 4 * head] = 0
            part.in_proj_bias[32 + 4 * head : 36 + 4 * head] = 0
    x, m = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    small, report = shrunk(net, x, m)
    assert report.mode == "both"
    assert count(small) == count(net) - 8 * 17 - 16 * 8 - 2 * (3 * 4 * 17 + 4 * 16)


class Halves(nn.Module):
    """One parameter, whose rows two maps take; uses: another one beside them, of rows that they have."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.both, self.uses = nn.Parameter(torch.randn(12, 5)), uses
        self.c, self.d = nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(F.linear(x, self.both[:4]).relu()) * self.d(F.linear(x, self.both[4:]).relu())
        return made + self.both[3, 0] if self.uses else made


def test_rows_go_from_each_part_of_a_parameter_unless_something_else_reads_it() -> None:
    for uses, left in ((False, 8), (True, 12)):
        torch.manual_seed(0)
        net = Halves(uses).double().eval()
        with torch.no_grad():
            net.both[[1, 5, 6, 11]] = 0
        small, _ = shrunk(net, torch.randn(3, 5, dtype=torch.float64))
        assert small.get_parameter("both").shape == (left, 5)
        assert small.get_parameter("c.weight").shape == (2, 4 if uses else 3)


class Grouped(nn.Module):
    """A grouped convolution between two others."""

    def __init__(self, inputs: int = 8, outputs: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, inputs, 1)
        self.mid = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
        self.norm, self.last = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(F.relu(self.norm(self.mid(F.relu(self.first(x))))))
        return made


def dead_in_groups(dead: Iterable[int], *sizes: int) -> Grouped:
    torch.manual_seed(0)
    net = Grouped(*sizes).double().eval()
    for layer in (net.mid, net.norm):
        kill(layer, dead)
    return net


def test_groups_of_a_convolution_lose_as_many_channels_each() -> None:
    cases = (
        ([0, 4, 8, 12], (8, 16, 4), (8, 12, 4)),  # one in every group
        ([0, 5, 11, 12, 13], (8, 16, 4), (8, 12, 4)),  # at other places, and one more
        ([0, 4, 8], (8, 16, 4), (8, 16, 4)),  # not in the last group
        ([0, 1, 2, 3], (8, 16, 4), (6, 12, 3)),  # a group
        ([0, 1, 2, 3, 4, 9, 15], (8, 16, 4), (6, 9, 3)),  # a group, and one in every other
        ([0, 3, 4], (4, 12, 4), (4, 12, 4)),
        ([0, 4, 6, 11], (4, 12, 4), (4, 8, 4)),  # one channel in, three out
    )
    for dead, sizes, left in cases:
        for form in ("auto", "graph"):
            net = dead_in_groups(dead, *sizes)
            x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
            small, report = compact(net, x, form=form)
            assert not report.rolled_back
            torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
            mid = small.get_submodule("mid")
            assert isinstance(mid, nn.Conv2d)
            assert (mid.in_channels, mid.out_channels, mid.groups) == left, (dead, form)


def test_groups_of_another_size_are_saved_cut_again_and_loaded(tmp_path: Path) -> None:
    for dead in ([0, 4, 8, 12], [0, 1, 2, 3, 4, 9, 15], [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]):
        net = dead_in_groups(dead)
        small, _ = shrunk(net, torch.randn(2, 3, 6, 6, dtype=torch.float64))
        save(small, tmp_path / "small.safetensors")
        loaded = load(lambda: Grouped().double(), tmp_path / "small.safetensors")
        x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
        assert torch.equal(loaded(x), small(x))
        assert repr(loaded) == repr(small)
        again, _ = shrunk(loaded, x)
        assert count(again) == count(small)


def test_a_file_with_groups_that_do_not_divide_the_channels_is_refused(tmp_path: Path) -> None:
    small, _ = shrunk(dead_in_groups([0, 4, 8, 12]), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    write_sizes(small, {"mid.groups": 5})
    save(small, tmp_path / "odd.safetensors")
    with pytest.raises(FileError, match="has 12 channels in 5 groups"):
        load(lambda: Grouped().double(), tmp_path / "odd.safetensors")


class Cell(nn.Module):
    """A plain recurrent cell written as a loop; start: how its first state is made."""

    def __init__(self, start: str, width: int = 10) -> None:
        super().__init__()
        self.start, self.width = start, width
        self.read, self.keep, self.out = nn.Linear(4, width), nn.Linear(width, width, bias=False), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        h = x.new_zeros(b, self.width) if self.start == "attribute" else torch.zeros(b, 10, dtype=x.dtype)
        if self.start == "layer":
            h = x.new_zeros(b, self.keep.in_features)
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.keep(h))
        made: Tensor = self.out(h)
        return made


def test_loops_that_begin_with_zeros_lose_dead_units() -> None:
    for start in ("layer", "attribute", "number"):
        torch.manual_seed(0)
        net = Cell(start).double().eval()
        kill(net.read, [1, 2, 7])
        kill(net.keep, [1, 2, 7])
        small, report = shrunk(net, torch.randn(2, 4, 4, dtype=torch.float64))
        assert small.get_parameter("keep.weight").shape == (7, 7)
        assert report.form == ("graph" if start == "number" else "module")


class ConvLSTM(nn.Module):
    """A convolutional LSTM cell in a loop, as it is usually written."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.gates, self.out = nn.Conv2d(2 + width, 4 * width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, steps, _, rows, columns = x.shape
        h, c = (torch.zeros(b, self.width, rows, columns, dtype=x.dtype) for _ in range(2))
        for t in range(steps):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], 1)), self.width, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        made: Tensor = self.out(h)
        return made


def test_convolutional_cells_lose_units_whose_candidate_is_dead() -> None:
    torch.manual_seed(0)
    net = ConvLSTM().double().eval()
    kill(net.gates, [18, 22])
    small, _ = shrunk(net, torch.randn(2, 3, 2, 5, 5, dtype=torch.float64))
    assert small.get_parameter("gates.weight").shape == (16, 6, 3, 3)
    assert small.get_parameter("out.weight").shape == (1, 4, 1, 1)


def test_groups_of_a_convolution_lose_inputs_at_the_same_places() -> None:
    cases = (
        ([1, 5, 9, 13], [], (12, 16, 4)),  # the second of every group
        ([1, 5, 9], [], (16, 16, 4)),  # not in the last group
        ([1, 6, 9, 13], [], (16, 16, 4)),  # at another place in the second
        ([1, 5, 9, 13], [0, 1, 2, 3, 4, 9, 15], (9, 9, 3)),  # a group, one out and one in of every other
        ([0, 1, 2, 3, 5, 9, 13], [0, 1, 2, 3], (9, 12, 3)),
    )
    for inputs, outputs, left in cases:
        for padding in (0, 1):
            for form in ("auto", "graph"):
                net = dead_in_groups(outputs, 16, 16, 4)
                kill(net.first, inputs)
                net.mid.padding = (padding, padding)
                x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
                small, report = compact(net, x, form=form)
                assert not report.rolled_back
                torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
                mid = small.get_submodule("mid")
                assert isinstance(mid, nn.Conv2d)
                assert (mid.in_channels, mid.out_channels, mid.groups) == left, (inputs, outputs, form)


def test_a_constant_that_groups_read_stays() -> None:
    net = dead_in_groups([], 16, 16, 4)
    kill(net.first, [1, 5, 9, 13])
    with torch.no_grad():
        net.first.bias[[1, 5, 9, 13]] = 0.5
    net.mid.padding = (0, 0)
    small, _ = shrunk(net, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert small.get_parameter("first.weight").shape[0] == 16
