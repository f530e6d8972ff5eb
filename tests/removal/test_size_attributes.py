"""Sizes that a module keeps as attributes change with the network, and the network stays the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import paring as pr
from paring.core.written_sizes import write_sizes, written_sizes
from paring.files.file import _digest


class Attention(nn.Module):
    """(N, T, 12) -> (N, T, 12), with numbers as most implementations keep them."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim, self.inner = dim, heads, dim // heads, dim
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(b, t, self.inner)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.attend(x))
        return out


class Written(Attention):
    """The number of heads stands in the forward."""

    def attend(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        q, k, v = self.qkv(x).view(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        return ((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(b, t, self.inner)


class Twice(Attention):
    """A number that is read for something else, too: here it scales what comes out."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.attend(x)) * self.heads
        return out


def dead(make: Any, heads: tuple[int, ...]) -> tuple[nn.Sequential, Tensor]:
    """A network in which nobody reads these heads."""
    torch.manual_seed(0)
    net = nn.Sequential(make(), nn.LayerNorm(12), make(), nn.Linear(12, 2)).double().eval()
    with torch.no_grad():
        for number in heads:
            net[0].out.weight[:, 4 * number : 4 * number + 4] = 0
    return net, torch.randn(2, 5, 12).double()


@pytest.mark.parametrize("heads", [(0,), (1, 2)])
def test_the_network_stays_its_owners(heads: tuple[int, ...]) -> None:
    net, x = dead(Attention, heads)
    small, report = pr.compact(net, x)
    left = 3 - len(heads)
    assert report.form == "module"
    assert written_sizes(small) == {"0.heads": left, "0.inner": 4 * left}
    assert small[0].qkv.out_features == 12 * left
    assert not written_sizes(net)
    assert any(f"0.heads is {left} now" in note for note in report.notes)
    for other in (x, torch.randn(3, 9, 12).double()):  # any length
        torch.testing.assert_close(small(other), net(other), atol=1e-12, rtol=0)
    again, _ = pr.compact(small, x)
    assert written_sizes(again) == written_sizes(small)


@pytest.mark.parametrize("make", [Written, Twice])
def test_where_a_guess_is_wrong_the_graph_is_rewritten(make: Any) -> None:
    net, x = dead(make, (1,))
    small, report = pr.compact(net, x)
    assert report.form == "graph"
    torch.testing.assert_close(small(x), net(x), atol=1e-12, rtol=0)
    assert net[0].heads == 3
    assert not written_sizes(net)


@pytest.mark.parametrize(("write", "read"), [(pr.save, pr.load), (pr.pack, pr.unpack)])
def test_files_keep_them(tmp_path: Path, write: Any, read: Any) -> None:
    net, x = dead(Attention, (1,))
    small, _ = pr.compact(net, x)
    write(small, tmp_path / "small")
    for source in (net, lambda: dead(Attention, ())[0]):
        found = read(source, tmp_path / "small")
        assert written_sizes(found) == {"0.heads": 2, "0.inner": 8}
        assert torch.equal(found(x), small(x))
    write(found, tmp_path / "again")
    assert written_sizes(read(net, tmp_path / "again")) == {"0.heads": 2, "0.inner": 8}


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"0.heads": 0}, "its sizes make no sense"),
        ({"0.heads": True}, "its sizes make no sense"),
        ({"0.heads": 2.0}, "its sizes make no sense"),
        ({"0.heads": 1 << 40}, "its sizes make no sense"),
        ([], "its sizes make no sense"),
        ({"0.training": 1}, "has none there"),
        ({"0.forward": 1}, "has none there"),
        ({"7.heads": 2}, "has none there"),
        ({"0.qkv": 2}, "has none there"),
    ],
)
def test_a_file_sets_nothing_else(tmp_path: Path, sizes: Any, why: str) -> None:
    net, x = dead(Attention, (1,))
    file = tmp_path / "small.safetensors"
    pr.save(pr.compact(net, x)[0], file)
    with safetensors.safe_open(file, "pt") as opened:
        manifest = json.loads(opened.metadata()["paring"])
    tensors = load_file(file)
    manifest["sizes"] = sizes
    manifest["digest"], _ = _digest({k: v for k, v in manifest.items() if k != "digest"}, tensors)
    save_file(tensors, file, {"paring": json.dumps(manifest)})
    with pytest.raises(pr.FileError, match=why):
        pr.load(net, file)


def test_only_numbers_are_sizes() -> None:
    net, _ = dead(Attention, ())
    for name in ("0.training", "0.qkv", "0.nothing", "9.heads"):
        with pytest.raises(KeyError):
            write_sizes(net, {name: 2})
