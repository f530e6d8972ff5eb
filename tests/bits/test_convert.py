"""Whole networks of bits: equal to the float network where that is exact, honest about the rest."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring.bits import BitNet, BitsError, pack_bits
from paring.bits.backend import kernels
from paring.bits.contract import binary
from paring.hard import Sign, Staircase
from paring.hard.learned_step import LearnedStep
from paring.methods import Binarize
from paring.models import build
from tests.reference.bits import lively, signs

pytestmark = CUT_SHORT


def small(unit: Callable[[], nn.Module] = Sign) -> nn.Sequential:
    """Every kind of layer between the first and the last: pools before and after norms, Hardtanh, dropout, flatten."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(12), unit(),
        nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.MaxPool2d(2), unit(),
        nn.Conv2d(20, 66, 3, padding=1, bias=False, groups=2), nn.MaxPool2d(3, 1), nn.BatchNorm2d(66), nn.Hardtanh(), unit(),
        nn.Dropout2d(0.5), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(66, 40), nn.BatchNorm1d(40), unit(),
        nn.Dropout(0.5), nn.Linear(40, 30), unit(), nn.Linear(30, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """Real sums in between; one unit module called twice; functional pooling, dropout and view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unit = nn.Conv2d(3, 32, 3, padding=1), Sign()
        self.conv1, self.norm1 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.shift = nn.Parameter(torch.randn(32, 1, 1))
        self.hidden, self.last = nn.Linear(32 * 4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm1(self.conv1(self.unit(x))) * self.shift
        h = self.unit(x)
        x = x + self.norm2(self.conv2(h)) + h
        y = F.max_pool2d(F.dropout(self.unit(x), 0.5, self.training), 3)
        return self.last(torch.relu(self.hidden(y.view(y.shape[0], -1))))


X = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("unit", [Sign, Staircase, lambda: LearnedStep(2)], ids=["sign", "staircase", "learned"])
def test_every_bit_is_right(unit: Callable[[], nn.Module], scale: bool) -> None:
    net = lively(small(unit), scale=scale)
    net[8].weight.data.fill_(0.25) if not scale else None  # a scale and one sign only
    packed = pack_bits(net, X)
    assert packed.report is not None
    bits = [line.name for line in packed.report.lines if line.bits]
    assert bits == ["4", "8", "16", "20"]
    found = packed.report.agreement
    assert found.bits == 4 * (12 * 49 + 20 * 9 + 66 + 40 + 30)
    assert packed.report.after < packed.report.before
    assert packed.net.get_submodule("0") is not net[0], "a copy"


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([(14, 14), (12, 15)]), st.integers(1, 5))
def test_sign_networks_equal_torch_bit_for_bit(seed: int, size: tuple[int, int], images: int) -> None:
    torch.manual_seed(seed)
    net = lively(small(), dyadic=True)
    x = torch.randn(images, 3, *size)
    packed = pack_bits(net, X[:, :, :, :14])
    with torch.no_grad():
        assert torch.equal(packed(x), net(x))


def test_real_sums_stay_real() -> None:
    net = lively(Residual(), dyadic=True, last=1)
    net.norm2.weight.data.abs_()
    x = X[:, :, :6, :6].contiguous()
    packed = pack_bits(net, x)
    assert packed.report is not None
    assert [line.name for line in packed.report.lines if line.bits] == ["conv1", "conv2", "hidden"]
    assert "float32 output" in str(packed.report)
    with torch.no_grad():
        assert torch.allclose(packed(x), net(x), atol=1e-5)
        other = torch.randn(9, 3, 6, 6)
        assert torch.allclose(packed(other), net(other), atol=1e-5)


class PreActivation(nn.Module):
    """One unit and one pool for everything, on bits and on floats, and a module whose name a second call would take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.pool = nn.Conv2d(3, 16, 3, padding=1), Sign(), nn.MaxPool2d(2)
        self.b1, self.c1 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.b2, self.act_1, self.last = nn.BatchNorm2d(16), nn.Hardtanh(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.pool(h + self.c1(self.act(self.b1(h))))
        h = h + self.c1(self.pool(self.act(F.pad(h, (3, 4, 3, 4)))))
        return self.last(self.act_1(self.act(self.b2(h)).mean((2, 3))))


def test_a_module_called_on_bits_and_on_floats() -> None:
    net = lively(PreActivation(), dyadic=True)
    x = X.contiguous()
    packed = pack_bits(net, x)
    assert packed.report is not None
    assert any(line.bits for line in packed.report.lines)
    with torch.no_grad():
        assert torch.allclose(packed(x), net(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:asked for 40:paring.ParingWarning")  # the gathered constants stay
@pytest.mark.parametrize("weights", ["sign", "mean"])
@pytest.mark.parametrize("seed", range(2))
def test_constants_of_closed_units_in_front_of_padding(seed: int, weights: Literal["sign", "mean"]) -> None:
    """Removal gathers them in one channel whose weights are whole multiples; all inner layers still run on bits, exactly."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 70, 3, padding=1, bias=False), nn.BatchNorm2d(70), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(70, 24, 5, padding=2, stride=2), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 4),
    )  # fmt: skip
    x, y = torch.randn(8, 3, 12, 12), torch.randint(0, 4, (8,))
    method = pr.Stack(pr.Binarize(weights=weights), pr.L0(price=pr.Budget(params=0.4), at="units"))
    run = pr.attach(net, method, x, steps=40)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    for _ in range(40):
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
    small = run.finish().eval()
    merged = [layer for layer in (small[3], small[7], small[10]) if not binary(layer.weight)]
    assert merged, "no constant was gathered; the test shows nothing"
    packed = pack_bits(small, x)
    assert packed.report is not None
    assert [line.name for line in packed.report.lines if line.bits] == ["3", "7", "10"]
    other = torch.randn(5, 3, 12, 12)
    assert torch.allclose(packed(other), small(other), atol=1e-4)


def test_images_of_another_size_are_refused_by_a_linear_layer() -> None:
    net = lively(nn.Sequential(nn.Conv2d(1, 8, 1), Sign(), nn.Flatten(), nn.Linear(288, 70), Sign(), nn.Linear(70, 5)))
    packed = pack_bits(net, torch.randn(2, 1, 6, 6))
    with pytest.raises(ValueError, match=r"maps of 6x6 got maps of 7x7"):
        packed(torch.randn(2, 1, 7, 7))


def test_convnet8() -> None:
    net = lively(build("convnet8", shape=(3, 32, 32), classes=10, activation=Sign), dyadic=True)
    x = torch.randn(2, 3, 32, 32)
    packed = pack_bits(net, x)
    assert packed.report is not None
    assert [line.name for line in packed.report.lines if line.bits] == [f"conv{n}" for n in range(2, 8)]
    kinds = [type(m).__name__ for m in packed.net.children()]
    assert kinds == [
        "Conv2d",
        "Encode",
        "BitPool",
        "BitLayer",
        "BitLayer",
        "BitPool",
        *["BitLayer"] * 4,
        "Decode",
        "Flatten",
        "Linear",
    ], "norms are comparisons now"
    with torch.no_grad():
        assert torch.equal(packed(x), net(x))


def test_after_exact_removal() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), Sign(), nn.Conv2d(20, 30, 3), nn.BatchNorm2d(30), Sign(),
        nn.Flatten(), nn.Linear(30 * 4, 40), nn.BatchNorm1d(40), Sign(), nn.Linear(40, 5),
    )  # fmt: skip
    lively(net, dyadic=True)
    with torch.no_grad():
        for norm in (net[1], net[4], net[8]):
            norm.weight[::2] = 0  # constant signs
    x = torch.randn(3, 3, 6, 6)
    compact, _ = pr.compact(net, x)
    packed = pack_bits(compact, x)
    assert packed.report is not None
    assert [line.name for line in packed.report.lines if line.bits] == ["3", "7"]
    assert packed.net.get_submodule("3").filters < 30
    with torch.no_grad():
        assert torch.allclose(packed(x), net(x), atol=1e-5)


def test_copies_pickles_and_files(tmp_path: Path) -> None:
    net = lively(small())
    packed = pack_bits(net, X)
    expected = packed(X)
    saved = io.BytesIO()
    torch.save(packed.state_dict(), saved)
    saved.seek(0)
    other = pack_bits(lively(small()), X)
    assert not torch.equal(other(X), expected)
    other.load_state_dict(torch.load(saved, weights_only=True))
    pr.save(packed, tmp_path / "bits.safetensors")
    read = pr.load(lambda: pack_bits(lively(small()), X), tmp_path / "bits.safetensors")
    for one in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), other, read):
        assert torch.equal(one(X), expected)
        assert isinstance(one, BitNet)
        assert not one.training


def test_onnx_has_no_bits(tmp_path: Path) -> None:
    packed = pack_bits(lively(small()), X)
    for net in (packed, nn.Sequential(packed)):
        with pytest.raises(ValueError, match="cannot write a BitNet: ONNX has no operator that counts bits"):
            pr.to_onnx(net, X, tmp_path / "net.onnx")


def test_memory_formats() -> None:
    net = lively(small(), dyadic=True)
    packed = pack_bits(net, X).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        assert torch.allclose(packed(X.contiguous(memory_format=torch.channels_last)), net(X), atol=1e-5)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    net = lively(small())
    packed = pack_bits(net, X)
    with pytest.raises(ValueError, match="cannot be trained"):
        packed.train()
    with pytest.raises(TypeError, match="float32 on the CPU"):
        packed(X.double())
    with pytest.raises(BitsError, match="train mode"):
        pack_bits(copy.deepcopy(net).train(), X)
    gated = copy.deepcopy(net)
    pr.attach(gated, pr.L0(price=1e-6, at="units"), example=X)
    with pytest.raises(BitsError, match=r"run.finish\(\)"):
        pack_bits(gated.eval(), X)

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BitsError, match="could not be traced"):
        pack_bits(Branch().eval(), X)
    with pytest.raises(BitsError, match="could not be traced"):
        pack_bits(net, X[:, :2])
    kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"paring\[bits\]"):
        pack_bits(net, X)
    kernels.cache_clear()


def test_reasons() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), Sign(), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), Sign(), nn.Conv2d(8, 8, 3), Sign(),
        nn.ConvTranspose2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), Sign(), nn.Conv2d(8, 8, 3),
    ).eval()  # fmt: skip
    for index in (2, 6, 8):
        net[index].weight.data = signs(*net[index].weight.shape)
    with pytest.raises(BitsError, match="no layer can run on bits"):
        pack_bits(net, X)
    net[10].weight.data = 0.5 * signs(*net[10].weight.shape)
    report = pack_bits(net, X).report
    assert report is not None
    told = {line.name: line.reason for line in report.lines}
    assert told == {
        "0": "its input does not come from a hard-threshold unit",
        "2": "its padding is 'reflect', not zeros",
        "4": "its weights are not ±1 times one scale per output channel",
        "6": "only Conv2d and Linear run on bits",
        "8": "its input does not come from a hard-threshold unit",
        "10": "float32 output",
    }
    assert all(reason in str(report) for reason in told.values())


def test_a_wrong_bit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from paring.bits import rewrite_bits as rewrite

    right = rewrite.find

    def off(*args: object) -> object:
        found = right(*args)  # type: ignore[arg-type]
        found.edges[0, 0] += 2
        return found

    monkeypatch.setattr(rewrite, "find", off)
    net = lively(small())
    net[5].weight.data[0], net[5].bias.data[0], net[5].running_mean.data[0] = 1.0, 0.0, 0.5
    with pytest.raises(BitsError, match="differ from the float32 layers"):
        pack_bits(net, X)


def test_from_training_to_bits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1),
        nn.MaxPool2d(2), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 9, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip
    x, y = torch.randn(64, 3, 6, 6), torch.randint(0, 5, (64,))
    run = pr.attach(net, Binarize(activations="sign", weights="mean"), example=x[:2])
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    for _ in range(5):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        run.step(opt)
    finished = run.finish().eval()
    packed = pack_bits(finished, x)
    assert packed.report is not None
    assert [line.name for line in packed.report.lines if line.bits] == ["3", "8"]
    with torch.no_grad():
        same = (packed(x).argmax(1) == finished(x).argmax(1)).float().mean()
    assert float(same) >= 0.95, "but for signs that float32 rounds the other way"
    assert packed.report.agreement.rounded <= 0.01 * packed.report.agreement.bits
