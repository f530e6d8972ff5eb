"""Branches that only add zeros go whole, whatever their layers are; what something else reads stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core.zeros import Zeros
from paring.files import load, save
from paring.removal import Report, compact


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def zero(*layers: nn.Module) -> None:
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.zero_()


class Block(nn.Module):
    """A residual block; how: the sum is made out of place, in place, or the branch is read once more."""

    def __init__(self, how: str = "sum", width: int = 6) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.n(self.a(x)))
        y: Tensor = self.m(self.b(h))
        if self.how == "in place":
            y += x
            return F.relu(y, inplace=True)
        if self.how == "read":
            return F.relu(x + y) * h.mean((1, 2, 3), keepdim=True)
        if self.how == "attribute":
            return F.relu(x + y) / self.b.kernel_size[0]
        return F.relu(x + y)


def shrunk(net: nn.Module, x: Tensor) -> tuple[nn.Module, Report]:
    small, report = compact(net, x)
    assert not report.rolled_back
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
    return small, report


def stacked(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Block(how), Block(), nn.Conv2d(6, 2, 1)).double()
    zero(net[1].m)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("how", ["sum", "in place"])
@pytest.mark.parametrize("train", [False, True])
def test_a_block_whose_branch_is_zero_keeps_no_parameters(how: str, train: bool) -> None:
    net = stacked(how).train(train)
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small, report = compact(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert report.silenced == ("1.a", "1.n", "1.b", "1.m")
    assert "gone with branches that only added zeros: 1.a, 1.n, 1.b, 1.m" in str(report)
    assert count(small.get_submodule("1")) == 0
    assert count(small.get_submodule("2")) == count(net[2])
    for size in (7, 12):
        other = torch.randn(3, 3, size, size, dtype=torch.float64)
        torch.testing.assert_close(small.eval()(other), net.eval()(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["sum", "in place"])
def test_the_stream_beside_a_silent_branch_may_lose_units(how: str, tmp_path: Path) -> None:
    net = stacked(how).eval()
    with torch.no_grad():
        for layer in (net[0], net[2].b, net[2].m):  # type: ignore[union-attr]
            for parameter in layer.parameters():  # type: ignore[union-attr,operator]
                parameter[[1, 4]] = 0
    small, report = shrunk(net, torch.randn(2, 3, 7, 7, dtype=torch.float64))
    assert report.silenced == ("1.a", "1.n", "1.b", "1.m")
    assert small.get_parameter("0.weight").shape[0] == 4
    assert small.get_parameter("3.weight").shape[1] == 4
    save(small, tmp_path / "small.safetensors")
    loaded = load(lambda: stacked(how), tmp_path / "small.safetensors")
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), net(x), rtol=1e-12, atol=1e-12)


def test_what_something_else_reads_stays() -> None:
    net = stacked("read").eval()
    small, report = shrunk(net, torch.randn(2, 3, 7, 7, dtype=torch.float64))
    assert report.silenced == ("1.b", "1.m")
    assert count(small.get_submodule("1.a")) > 0


def test_a_forward_that_looks_at_the_layer_keeps_it() -> None:
    net = stacked("attribute").eval()
    small, report = shrunk(net, torch.randn(2, 3, 7, 7, dtype=torch.float64))
    assert not report.silenced
    assert any("only add zeros and stay" in note and "kernel_size" in note for note in report.notes)
    assert count(small.get_submodule("1.b")) > 0


def test_branches_of_hooks_and_tied_layers_stay() -> None:
    net = stacked("sum").eval()
    net[1].a.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    net[2].b.weight = net[1].b.weight  # type: ignore[union-attr]
    _, report = shrunk(net, torch.randn(2, 3, 7, 7, dtype=torch.float64))
    assert report.silenced == ("1.n", "1.m")


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 5), (2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=2, dilation=2), (2, 4, 9)),
    "strided": (lambda: nn.Conv2d(4, 4, (3, 1), (2, 1), (1, 0), bias=False), (2, 4, 7, 5)),
    "same": (lambda: nn.Conv2d(4, 4, (5, 3), padding="same", groups=2), (2, 4, 7, 5)),
    "valid": (lambda: nn.Conv3d(4, 4, 2, padding="valid"), (2, 4, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=(1, 0), dilation=2), (2, 4, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm(5), (2, 3, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (2, 3, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_zeros_have_the_shape_of_the_layer(name: str) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    stand_in = Zeros.of(layer)
    assert stand_in is not None
    for more in (0, 3):
        x = torch.randn(*shape[:2], *(n + more * (len(shape) == 4) for n in shape[2:]), dtype=torch.float64)
        assert torch.equal(stand_in(x), torch.zeros_like(layer(x)))
    again = Zeros(*stand_in.saved_as[1:])
    assert again.saved_as == stand_in.saved_as
    assert torch.equal(again(x), stand_in(x))


def test_numbers_that_say_nothing_are_refused() -> None:
    for numbers in ((8,), (0,), (3, 4), (3, 4, 1), (1, 1, 1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="says nothing of zeros"):
            Zeros(*numbers)
    assert Zeros.of(nn.ReLU()) is None


class Encoder(nn.Module):
    """A pre-norm feed-forward branch and a dead embedding beside a live one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 8), nn.Embedding(2, 8)
        self.norm, self.up, self.down, self.out = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.kinds(ids % 2)
        h = h + self.down(F.gelu(self.up(self.norm(h))))
        made: Tensor = self.out(h)
        return made


def test_feed_forward_branches_and_embeddings_go_and_the_file_knows_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Encoder().double().eval()
    zero(net.down, net.kinds)
    ids = torch.randint(9, (2, 5))
    for form in ("auto", "graph"):
        small, report = shrunk(net, ids)
        assert set(report.silenced) == {"norm", "up", "down", "kinds"}
        if form == "graph":
            small, _ = compact(small, ids, form="graph")
        assert count(small) == 9 * 8 + 8 * 3 + 3
        save(small, tmp_path / "small.safetensors")
        loaded = load(Encoder, tmp_path / "small.safetensors")
        assert count(loaded) == count(small)
        torch.testing.assert_close(loaded(ids), small(ids), rtol=0, atol=0)
