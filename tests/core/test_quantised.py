"""Quantised networks come in: as the numbers that their weights stand for, or with a sentence that says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import ParingWarning
from paring.core.quantised import floats_of, in_floats, is_quantised
from paring.files import File, PareError
from paring.files.file import FileError

torchs_own = pytest.mark.filterwarnings("ignore:.*(torch.ao.quantization|reduce_range|TypedStorage|quantize).*")


class Rows(Tensor):
    """Eight bits and a scale for each row, the way torchao makes its tensors: no storage, few operations."""

    levels: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, levels: Tensor, scales: Tensor) -> Rows:
        return Tensor._make_wrapper_subclass(cls, levels.shape, dtype=scales.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, levels: Tensor, scales: Tensor) -> None:
        self.levels, self.scales = levels, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["levels", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], _: Any, __: Any, ___: Any) -> Rows:
        return cls(inner["levels"], inner["scales"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].levels, args[0].scales)
        raise NotImplementedError(f"{func} is not implemented")

    @classmethod
    def of(cls, weight: Tensor) -> Rows:
        scales = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scales).round().to(torch.int8), scales)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        return self.levels * self.scales

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        return memo.setdefault(id(self), type(self)(self.levels.clone(), self.scales.clone()))


class Original(Rows):
    """One whose `dequantize` needs more, as that of NF4 does."""

    def dequantize(self, *needed: Any) -> Tensor:
        raise TypeError("two arguments are missing")

    def get_original_weight(self) -> Tensor:
        return self.levels * self.scales


class Packed(Rows):
    """One that gives something else."""

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        return self.levels.flatten()


class Silent(Rows):
    """One that cannot."""

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        raise NotImplementedError("no")


def floats() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()


def quantised(kind: type[Rows] = Rows) -> tuple[nn.Sequential, nn.Sequential]:
    """A network with quantised weights, and what it stands for."""
    given, same = floats(), floats()
    for place in (0, 2):
        rows = kind.of(given[place].weight.detach())
        given[place].weight = nn.Parameter(rows, requires_grad=False)
        same[place].weight = nn.Parameter(rows.levels * rows.scales)
    return given, same


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


@pytest.mark.parametrize("kind", [Rows, Original])
def test_tensors_of_their_own_class_come_in(kind: type[Rows], tmp_path: Path) -> None:
    given, same = quantised(kind)
    with pytest.warns(ParingWarning, match=r"pack takes the numbers that the quantised weights of '0', '2' stand for"):
        size = pr.pack(given, tmp_path / "a.pare")
    assert isinstance(given[0].weight, kind), "what was given stays as it was"
    assert equal(pr.unpack(floats(), tmp_path / "a.pare"), same)
    assert size < 1.15 * 2 * 64 * 96, "a byte for each weight, scales and biases"
    codes = {e.codes[0].levels for e in File(tmp_path / "a.pare").entries if e.name.endswith("weight")}
    assert codes <= {"rows", "groups"}, "levels and scales"
    with pytest.warns(ParingWarning, match="save takes"):
        pr.save(given, tmp_path / "a.safetensors")
    assert equal(pr.load(floats(), tmp_path / "a.safetensors"), same)


def test_a_mapping_of_quantised_tensors(tmp_path: Path) -> None:
    given, same = quantised()
    pr.pack(dict(given.state_dict()), tmp_path / "a.pare")
    found = pr.unpack(None, tmp_path / "a.pare")
    assert all(torch.equal(found[name], value) for name, value in same.state_dict().items())


def test_compact_takes_them(tmp_path: Path) -> None:
    given, same = quantised()
    with torch.no_grad():
        given[0].weight.levels[:10] = 0
        same[0].weight[:10] = 0
        for net in (given, same):
            net[0].bias[:10] = -1.0
    x = torch.randn(5, 64)
    with pytest.warns(ParingWarning, match="compact takes"):
        small, _ = pr.compact(given, x)
    assert small[0].out_features == 86
    assert torch.allclose(small(x), same(x), atol=1e-5)
    with pytest.raises(ValueError, match="inplace=True"), pytest.warns(ParingWarning):
        pr.compact(given, x, inplace=True)


def test_tied_weights_stay_tied() -> None:
    rows = nn.Parameter(Rows.of(torch.randn(8, 8)), requires_grad=False)
    given = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    given[0].weight = given[1].weight = rows
    with pytest.warns(ParingWarning):
        found = in_floats(given, "this")
    assert found.get_submodule("0").weight is found.get_submodule("1").weight
    assert in_floats(found, "this") is found


@pytest.mark.parametrize("kind", [Packed, Silent])
def test_what_does_not_say_its_numbers_is_refused(kind: type[Rows], tmp_path: Path) -> None:
    given, _ = quantised(kind)
    message = rf"pack cannot tell what numbers '0.weight' stands for: it is a .*{kind.__name__} without a dequantize"
    for one in (given, dict(given.state_dict())):
        with pytest.raises(PareError, match=message):
            pr.pack(one, tmp_path / "a.pare")
    with pytest.raises(FileError, match="save cannot tell"):
        pr.save(given, tmp_path / "a")
    with pytest.raises(ValueError, match="compact cannot tell"):
        pr.compact(given, torch.randn(2, 64))
    assert not list(tmp_path.iterdir())


def test_ordinary_tensors_are_left_alone() -> None:
    plain = torch.randn(3)
    assert floats_of(plain, "a", "this") is plain
    for one in (plain, nn.Parameter(plain), torch.arange(3), plain.to_sparse(), nn.Buffer(plain)):
        assert not is_quantised(one)
    net = floats()
    assert in_floats(net, "this") is net


@torchs_own
def test_dynamic_layers_of_torch(tmp_path: Path) -> None:
    given = torch.ao.quantization.quantize_dynamic(floats(), {nn.Linear}, torch.qint8)
    with pytest.warns(ParingWarning, match="pack takes"):
        size = pr.pack(given, tmp_path / "a.pare")
    found = pr.unpack(floats(), tmp_path / "a.pare")
    for place in (0, 2):
        assert torch.equal(found.get_submodule(str(place)).weight, given[place].weight().dequantize())
        assert torch.equal(found.get_submodule(str(place)).bias, given[place].bias())
    assert size < 1.1 * 2 * 64 * 96
    x = torch.randn(9, 64)
    with pytest.warns(ParingWarning, match="compact takes"):
        small, _ = pr.compact(given, x)
    assert torch.allclose(small(x), found(x), atol=1e-5)
    assert (small(x) - given(x)).abs().max() < 0.05


def prepared(net: nn.Module, *inputs: Tensor) -> nn.Module:
    stubbed = nn.Sequential(torch.ao.quantization.QuantStub(), net, torch.ao.quantization.DeQuantStub()).eval()
    stubbed.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)  # type: ignore[assignment]
    torch.ao.quantization.prepare(stubbed, inplace=True)
    stubbed(*inputs)
    return stubbed


@torchs_own
def test_static_layers_of_torch(tmp_path: Path) -> None:
    x = torch.randn(20, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    fresh = nn.Sequential(torch.ao.quantization.QuantStub(), copy.deepcopy(net), torch.ao.quantization.DeQuantStub())
    given = torch.ao.quantization.convert(prepared(net, x))
    with pytest.warns(ParingWarning, match="pack takes"):
        pr.pack(given, tmp_path / "a.pare")
    found = pr.unpack(fresh, tmp_path / "a.pare")
    assert torch.equal(found.get_submodule("1.0").weight, given.get_submodule("1.0").weight().dequantize())
    assert torch.equal(found.get_submodule("1.3").weight, given.get_submodule("1.3").weight().dequantize())
    assert (found(x) - given(x)).abs().max() < 0.1


@torchs_own
@pytest.mark.parametrize("what", [lambda net, path: pr.pack(net, path), lambda net, path: pr.save(net, path)])
def test_layers_that_are_not_known_are_refused(what: Callable[[nn.Module, Path], object], tmp_path: Path) -> None:
    lstm = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 8)), {nn.LSTM}, torch.qint8)
    with pytest.raises((PareError, FileError), match=r"knows no layer in floats for '0', a torch.ao.nn.*LSTM"):
        what(lstm, tmp_path / "a")
