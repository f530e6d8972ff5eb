"""Wrappers that training puts around a network: seen through everywhere, and nothing else is."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.bits import BitsError, pack_bits
from paring.compression import Uniform, compress
from paring.core import plain_net, unaveraged, unwrapped, wrappers
from paring.core.unwrap import bare_names, gated_names
from paring.files import OnnxError
from paring.train import Ema

pytestmark = [BY_HAND, CUT_SHORT]

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def compiled(net: nn.Module) -> nn.Module:
    found = torch.compile(net, backend="eager")
    assert isinstance(found, nn.Module)
    return found


WRAP: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": compiled,
    "parallel": nn.DataParallel,
    "average": AveragedModel,
    "compile of parallel": lambda net: compiled(nn.DataParallel(net)),
    "average of compile of parallel": lambda net: AveragedModel(compiled(nn.DataParallel(net))),
    "parallel of average": lambda net: nn.DataParallel(AveragedModel(net)),
}


def make() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        net[0].weight[:5] = 0
        net[0].bias[:5] = 0
    return net


class Own(nn.Module):
    """A network of one's own with a part called `module`, and one called `_orig_mod`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(8, 4)
        self._orig_mod = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._orig_mod(self.module(x).relu())
        return out


@pytest.mark.parametrize("name", WRAP)
def test_everything_sees_through(name: str, tmp_path: Path) -> None:
    net = make()
    net_like, wrapped = str(pr.report(net, X)), WRAP[name](net)
    inner = unwrapped(wrapped)
    assert type(inner) is nn.Sequential
    assert [name for name, _ in inner.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert str(pr.report(wrapped, X)) == net_like
    assert str(pr.groups(wrapped, X)) == str(pr.groups(net, X))
    expected = net(X)
    small, _ = pr.compact(wrapped, X)
    assert type(small) is nn.Sequential
    assert small[0].out_features == 7
    assert torch.allclose(small(X), expected, atol=1e-6)
    for given, name_ in ((net, "bare"), (wrapped, "wrapped")):
        pr.save(given, tmp_path / f"{name_}.safetensors")
        pr.pack(given, tmp_path / f"{name_}.pare")
    for kind in ("safetensors", "pare"):
        assert (tmp_path / f"wrapped.{kind}").read_bytes() == (tmp_path / f"bare.{kind}").read_bytes()
    assert torch.equal(pr.load(make, tmp_path / "wrapped.safetensors").eval()(X), expected)
    assert torch.equal(pr.unpack(make, tmp_path / "wrapped.pare").eval()(X), expected)


@pytest.mark.parametrize("name", WRAP)
def test_files_fill_what_is_wrapped(name: str, tmp_path: Path) -> None:
    net = make()
    pr.save(net, tmp_path / "net.safetensors")
    pr.pack(net, tmp_path / "net.pare")

    def blank() -> nn.Module:
        return WRAP[name](nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)))

    found, given = pr.load(blank, tmp_path / "net.safetensors"), blank()
    assert type(found) is nn.Sequential
    assert torch.equal(found.eval()(X), net(X))
    filled = pr.unpack(lambda: given, tmp_path / "net.pare")
    assert filled is unwrapped(given)
    assert torch.equal(filled.eval()(X), net(X))


@pytest.mark.parametrize("name", WRAP)
def test_attach_and_finish_see_through(name: str) -> None:
    wrapped = WRAP[name](make())
    run = pr.attach(wrapped, pr.GMP(density=0.5), X, steps=2)
    assert run.net is unwrapped(wrapped)
    small = run.finish(wrapped if "average" not in name else None, early=True)
    assert type(small) is nn.Sequential


def test_own_networks_with_such_names_stay(tmp_path: Path) -> None:
    net = Own()
    assert unwrapped(net) is net
    assert list(wrappers(net)) == [net]
    pr.save(net, tmp_path / "net.safetensors")
    again = pr.load(Own, tmp_path / "net.safetensors")
    assert type(again) is Own
    assert torch.equal(again(X), net(X))
    assert (
        unwrapped(nn.DataParallel(net)) is net
    )  # the wrapper goes, and its part called `module` is not taken for another


def test_fabric_is_known_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class _FabricModule(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self._forward_module, self._original_module = nn.DataParallel(net), net

        @property
        def module(self) -> nn.Module:
            return self._original_module

    net = make()
    wrapped = _FabricModule(net)
    assert unwrapped(wrapped) is wrapped
    known = types.ModuleType("lightning.fabric.wrappers")
    known._FabricModule = _FabricModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning.fabric.wrappers", known)
    assert unwrapped(wrapped) is net


@pytest.mark.parametrize("wrap", [lambda net: net, WRAP["average of compile of parallel"]], ids=["bare", "wrapped"])
def test_gates_are_refused_before_anything_is_written(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    net = make()
    run = pr.attach(net, pr.L0(price=1e-3, at="units"), X)
    given, file = wrap(net).eval(), tmp_path / "net"
    batches = [(X, torch.zeros(4, dtype=torch.long))]
    calls: list[tuple[str, type[Exception], Callable[[], object]]] = [
        ("save", pr.FileError, lambda: pr.save(given, file)),
        ("pack", pr.PareError, lambda: pr.pack(given, file)),
        ("compact", ValueError, lambda: pr.compact(given, X)),
        ("groups", ValueError, lambda: pr.groups(given, X)),
        ("compress", ValueError, lambda: compress(given, batches, max_loss_increase=1.0, compressor=Uniform())),
    ]
    for what, error, call in calls:
        with pytest.raises(
            error, match=rf"{what} takes a network without gates, but '0' of this Sequential .* run.finish\(\)"
        ):
            call()
    assert not list(tmp_path.iterdir())
    pr.save(run.finish(early=True), file)
    assert file.exists()


def test_gates_are_refused_by_the_extras() -> None:
    net = make()
    pr.attach(net, pr.L0(price=1e-3, at="units"), X)
    net.eval()
    with pytest.raises(OnnxError, match=r"run.finish\(\)"):
        pr.to_onnx(net, X, "/nowhere")
    with pytest.raises(BitsError, match=r"run.finish\(\)"):
        pack_bits(net, X)


def test_no_module_at_all() -> None:
    with pytest.raises(TypeError, match=r"save needs an nn\.Module, got dict"):
        plain_net({}, "save")  # type: ignore[arg-type]


def test_an_average_of_nothing_is_said() -> None:
    net = make()
    run = pr.attach(net, pr.GMP(density=0.5), X, steps=2)
    average = AveragedModel(net)
    assert unaveraged(compiled(average))
    assert not unaveraged(net)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.finish(compiled(average))
    assert [one for one in said if "has averaged nothing yet" in str(one.message)]
    assert "has averaged nothing yet" in str(run.report)
    average.update_parameters(net)
    assert not unaveraged(average)
    run.finish(average, early=True)
    assert "has averaged nothing yet" not in str(run.report)


def test_ema_of_what_is_wrapped_has_the_network_s_names() -> None:
    net = make()
    run = pr.attach(net, pr.GMP(density=0.5), X, steps=2)
    ema = Ema(compiled(net), 0.9)
    assert ema.net is net
    run.track(ema)


@pytest.mark.parametrize("name", WRAP)
def test_names_in_a_state_dict_are_seen_through(name: str) -> None:
    net = make()
    names = list(net.state_dict())
    wrapped = WRAP[name](net).state_dict()
    found = bare_names(wrapped)
    assert sorted(found.values()) == sorted(names)
    assert all(key in wrapped and key.endswith(bare) for key, bare in found.items())
    assert bare_names(names) == {key: key for key in names}


def test_names_that_only_some_have_stay() -> None:
    names = ["module.weight", "_orig_mod.weight"]
    assert bare_names(names) == {name: name for name in names}
    assert bare_names(Own().state_dict()) == {name: name for name in Own().state_dict()}
    assert bare_names([]) == {}


def test_names_of_gates() -> None:
    net = make()
    pr.attach(net, pr.L0(price=1e-3, at=("units", "inputs")), X)
    gated = gated_names(net.state_dict())
    assert gated
    assert not [name for name in net.state_dict() if "gate" in name and name not in gated]
    assert gated_names(["fc.weight", "a.unit_gates.b", "unit_gate_of"]) == []


class Parts(nn.Module):
    """A network whose parts are wrapped, as a block is that is compiled alone."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 12), wrap(nn.Sequential(nn.ReLU(), nn.Linear(12, 12), nn.ReLU()))])
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.out(x)
        return found


@torch.no_grad()
def answer(net: nn.Module) -> Tensor:
    found: Tensor = net(X)
    return found


@pytest.mark.parametrize("name", ["compile", "average of compile of parallel"])
def test_parts_that_are_wrapped_have_the_names_of_the_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Parts(WRAP[name]).eval()
    with torch.no_grad():
        net.get_submodule("blocks.0").weight[:5] = 0  # type: ignore[index, operator]
        net.get_submodule("blocks.0").bias[:5] = 0  # type: ignore[index, operator]
    expected, names = answer(net), list(net.state_dict())
    small, _ = pr.compact(net, X)
    assert list(net.state_dict()) == names
    assert torch.allclose(answer(small), expected, atol=1e-6)
    plain = Parts(lambda part: part)
    assert list(small.state_dict()) == list(plain.state_dict())
    assert small.get_parameter("blocks.0.weight").shape == (7, 8)
    for given in (net, small):
        pr.save(given, tmp_path / "net.safetensors")
        pr.pack(given, tmp_path / "net.pare")
        assert list(net.state_dict()) == names
        for factory in (lambda: Parts(lambda part: part), lambda: Parts(WRAP[name])):
            for found in (pr.load(factory, tmp_path / "net.safetensors"), pr.unpack(factory, tmp_path / "net.pare")):
                assert list(found.state_dict()) == list(factory().state_dict())
                assert torch.allclose(answer(found), expected, atol=1e-6)
    assert (
        compress(
            net, [(X, torch.zeros(4, dtype=torch.long))], max_loss_increase=1.0, compressor=Uniform((8,)), small_bits=0
        ).chosen
        is not None
    )
