"""What verification has to see: differences beside large constants, at other lengths, in train mode; and refusals at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import paring as pr
from paring.graph import CaptureError, shrink


def kill(layer: nn.Module, count: int, constant: float = 0.0) -> None:
    with torch.no_grad():
        layer.weight[:count] = 0  # type: ignore[index]
        layer.bias[:count] = constant  # type: ignore[index]


class Masked(nn.Module):
    """Scores scaled by a width that is read at run time; actions that are not allowed score -1e9."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x).relu()
        return (self.o(h) / h.shape[-1] ** 0.5).masked_fill(mask, -1e9)


def test_large_constants_in_the_output_hide_nothing() -> None:
    torch.manual_seed(0)
    net, x, mask = Masked().eval(), torch.randn(4, 5), torch.rand(4, 6) < 0.5
    kill(net.a, 8)
    small, _ = shrink(net, (x, mask))
    assert (net(x, mask) - small(x, mask))[~mask].abs().max() < 1e-6


class Pooled(nn.Module):
    """A sum over the elements of a set."""

    def __init__(self, phi: nn.Module, last: int, dim: int) -> None:
        super().__init__()
        self.phi, self.out, self.dim = phi, nn.Linear(last, 2), dim

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.phi(x).relu().sum(self.dim))
        return found


@pytest.mark.parametrize("kind", ["set", "signal"])
def test_sums_over_positions_are_not_folded_for_one_length_alone(kind: str) -> None:
    torch.manual_seed(0)
    phi, dim, shape = (nn.Linear(3, 16), 1, (4, 10, 3)) if kind == "set" else (nn.Conv1d(3, 16, 3), -1, (4, 3, 10))
    net = Pooled(phi, 16, dim).eval()
    kill(phi, 8, 0.5)
    small, report = shrink(net, torch.randn(shape), form="module")
    longer = torch.randn(*(2 * n if d == dim % 3 else n for d, n in enumerate(shape)))
    assert torch.allclose(net(longer), small(longer), atol=1e-5)
    assert report.rolled_back


class Auxiliary(nn.Module):
    """Another head in train mode, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.o, self.aux = nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.a(x).relu()
        return (self.o(self.drop(h)), self.aux(h)) if self.training else self.o(h)


def test_train_mode_is_checked_though_there_is_dropout() -> None:
    net = Auxiliary().eval()
    with torch.no_grad():
        net.o.weight[:, :4] = 0
    small = pr.compact(net, torch.randn(4, 5), mode="both")
    a, b = (one.train() for one in (net, small))
    for part in (a.drop, b.drop):
        part.eval()
    x = torch.randn(4, 5)
    for one, other in zip(a(x), b(x), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_dropout_that_is_on_in_eval_mode_is_noise() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    kill(net[0], 4, 1.0)
    net.eval()
    net[2].train()
    small = pr.compact(net, torch.randn(4, 4))
    assert small[0].out_features == 8
    assert pr.compact(net.eval(), torch.randn(4, 4))[0].out_features == 4


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.d = parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.d(self.b(x).relu())
        return found


def test_spectral_norms_stand_still_while_looked_at(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Spectral(), torch.randn(4, 5)
    with torch.no_grad():
        net.b.parametrizations.weight.original.normal_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small = pr.compact(net, x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.b.parametrizations.weight.training
    assert small.b.parametrizations.weight.training
    pr.save(net.eval(), tmp_path / "a.safetensors")
    loaded = pr.load(Spectral, tmp_path / "a.safetensors")
    assert not loaded.b.parametrizations.weight.training
    assert torch.equal(loaded(x), net(x))
    pr.pack(net, tmp_path / "a.pare")
    assert torch.equal(pr.unpack(tmp_path / "a.pare", Spectral)(x), net(x))


def test_a_single_example_without_a_batch() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    kill(net[0], 4, 0.3)
    small, x = pr.compact(net, torch.randn(5)), torch.randn(5)
    assert small[0].out_features == 4
    assert torch.allclose(net(x), small(x), atol=1e-6)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o(self.b(self.a(x).relu()).relu() * x.max().item())
        return found


def test_numbers_read_from_tensors_are_barriers() -> None:
    net = Scalar().eval()
    kill(net.a, 4)
    small, x = pr.compact(net, torch.randn(4, 5)), torch.randn(4, 5)
    assert small.a.out_features == 4
    assert torch.allclose(net(x), small(x), atol=1e-6)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.m, self.o = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.o(self.m(x, y, y, need_weights=False)[0])
        return found


def test_attention_with_a_smaller_output_loads_again(tmp_path: Path) -> None:
    net, given = Attending().eval(), (torch.randn(4, 3, 8), torch.randn(4, 6, 8))
    kill(net.m.out_proj, 0)
    with torch.no_grad():
        net.m.out_proj.weight[4:], net.m.out_proj.bias[4:] = 0, 0
    small = pr.compact(net, given)
    assert small.m.out_proj.weight.shape == (4, 8)
    pr.save(small, tmp_path / "a.safetensors")
    assert torch.equal(pr.load(Attending, tmp_path / "a.safetensors").eval()(*given), small(*given))


def test_what_cannot_be_looked_at_is_said() -> None:
    pruned = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.ln_structured(pruned[0], "weight", 0.5, 2, 0)
    with pytest.raises(CaptureError, match=r"weight of '0' .*prune.remove"):
        pr.compact(pruned, torch.randn(4, 5))
    prune.remove(pruned[0], "weight")
    with torch.no_grad():
        pruned[0].bias.masked_fill_(~pruned[0].weight.any(1), 0.0)
    assert pr.compact(pruned, torch.randn(4, 5))[0].out_features == 4
    with pytest.raises(CaptureError, match="the example is empty"):
        pr.compact(pruned, torch.randn(0, 5))
