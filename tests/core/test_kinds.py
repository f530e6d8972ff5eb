"""The table of layer kinds: a class of one's own is one entry, and is then gated, removed, counted, saved and loaded."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.analysis import wiring
from paring.core import (
    Gate,
    GatedCall,
    Kind,
    PlaceKind,
    gate_shape,
    kind_of,
    kinds,
    put,
    register,
    release,
    stock_class,
)
from paring.core.recurrent import GATES
from paring.cost import CostModel
from paring.cost.actual import measure
from paring.files.fits import misfit
from paring.gates import GaussianGate, StochasticGate, openness, support
from paring.removal import compact
from paring.testing import difference

F64 = torch.float64


class ScaledLinear(nn.Linear):
    """y = s * (W x + b), one s for each unit."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.rand(outputs) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class GainedDepthwise(nn.Conv2d):
    """A depthwise convolution with one gain for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.gain = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


class TurnedLinear(nn.Module):
    """y = x W + b with a weight (inputs, outputs), derived from no layer of torch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.read, self.made = inputs, outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, self.read), self.weight).view(*x.shape[:-1], self.made)


class GatedScaledLinear(GatedCall, ScaledLinear):
    """`ScaledLinear` with gates."""


class GatedGainedDepthwise(GatedCall, GainedDepthwise):
    """`GainedDepthwise` with gates."""


class GatedTurnedLinear(GatedCall, TurnedLinear):
    """`TurnedLinear` with gates."""


SCALED = Kind(
    ScaledLinear, "linear", sizes=("out_features", "in_features"), per_unit=("bias", "scale"), gated=GatedScaledLinear
)
MINE = (
    SCALED,
    Kind(
        GainedDepthwise,
        "conv",
        sizes=("out_channels", "in_channels"),
        groups="groups",
        per_unit=("bias", "gain"),
        gated=GatedGainedDepthwise,
    ),
    Kind(TurnedLinear, "addmm", unit_dim=1, column_dim=0, sizes=("read", "made"), gated=GatedTurnedLinear),
)
for one in MINE:
    register(one)


def dense() -> nn.Module:
    return nn.Sequential(
        ScaledLinear(6, 12), nn.ReLU(), TurnedLinear(12, 10), nn.Tanh(), ScaledLinear(10, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def maps() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 9, 3, padding=1),
        nn.ReLU(),
        GainedDepthwise(9),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        ScaledLinear(36, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"dense": (dense, (6,)), "maps": (maps, (2, 6, 6))}


def difference_of(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    return build().to(F64), torch.randn(5, *shape, dtype=F64)


class Fixed(Gate):
    """A gate with a given multiplier."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(value)

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    def forward(self, batch: int | None = None) -> Tensor:
        return self.z

    def prob_open(self) -> Tensor:
        return (self.z != 0).to(self.z.dtype)

    def value(self) -> Tensor:
        return self.z


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "scaled": (lambda: ScaledLinear(4, 3), (5, 7, 4)),
    "depthwise": (lambda: GainedDepthwise(4), (5, 4, 6, 6)),
    "turned": (lambda: TurnedLinear(4, 3), (5, 7, 4)),
}


@pytest.mark.parametrize("place", ["units", "inputs", "weights"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_gate_multiplies_what_it_says_and_folds_into_the_weights(name: str, place: PlaceKind) -> None:
    torch.manual_seed(1)
    build, shape = LAYERS[name]
    plain, x = build().to(F64), torch.randn(shape, dtype=F64)
    z = torch.rand(gate_shape(plain, place), dtype=F64)
    z.view(-1)[0] = 0
    along = z.view(-1, 1, 1) if name == "depthwise" else z
    if place == "weights":
        other = copy.deepcopy(plain)
        other.weight.data.mul_(z)
        wanted = other(x)
    else:
        wanted = plain(x) * along if place == "units" else plain(x * along)
    net = nn.Sequential(copy.deepcopy(plain))
    put(net[0], place, Fixed(z))
    assert stock_class(net[0]) is type(plain)
    assert torch.allclose(net(x), wanted, atol=1e-12)
    assert torch.allclose(pickle.loads(pickle.dumps(net))(x), wanted, atol=1e-12)
    release(net)
    assert type(net[0]) is type(plain)
    assert torch.allclose(net(x), wanted, atol=1e-12)


def test_noise_of_weights_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise of its weights"):
        put(ScaledLinear(4, 3), "weights", GaussianGate(torch.ones(3, 4)))


@pytest.mark.parametrize("name", NETS)
def test_what_is_zero_goes_with_all_its_tensors(name: str) -> None:
    net, x = made(name)
    net.eval()
    with torch.no_grad():
        for module in net:
            if isinstance(module, TurnedLinear):
                module.weight[:, :4] = 0
                module.bias[:4] = 0
            elif isinstance(module, ScaledLinear):
                module.scale[1:4] = 0  # the unit is zero, although no weight is
            elif isinstance(module, GainedDepthwise):
                module.gain[2:7] = 0
    small, report = compact(net, x)
    assert difference(net, small, x) < 1e-12
    assert not report.rolled_back
    assert [type(a) for a in net] == [type(a) for a in small]
    for module in small:
        if isinstance(module, ScaledLinear):
            assert len(module.weight) == len(module.scale) == module.out_features
        if isinstance(module, GainedDepthwise):
            assert len(module.weight) == len(module.gain) == module.groups == module.in_channels == 4
        if isinstance(module, TurnedLinear):
            assert tuple(module.weight.shape) == (module.read, module.made) == (9, 6)
        assert misfit(module) == ""


@pytest.mark.parametrize("name", NETS)
def test_gated_trained_counted_and_finished(name: str) -> None:
    net, x = made(name)
    model = CostModel.of(net, wiring(net, x))
    dense_cost, whole = model(), measure(net, x)
    assert int(dense_cost.parameters) == sum(p.numel() for p in net.parameters()) == whole.parameters
    assert int(dense_cost.macs) == whole.macs
    run = pr.attach(net, pr.L0(price=1e-4, at="units"), x[:2])
    gates = [module for module in net.modules() if isinstance(module, StochasticGate)]
    assert len(gates) == sum(kind_of(m) in MINE for m in net)  # the first convolution shares that of the depthwise one
    optimizer = torch.optim.AdamW(run.parameter_groups(lr=1e-2))
    for _ in range(2):
        optimizer.zero_grad()
        (net(x).square().mean() + run.penalty()).backward()
        run.step(optimizer)
    for gate in gates:
        gate.log_alpha.data[: len(gate.log_alpha) // 3] = -9.0
        gate.log_alpha.data[len(gate.log_alpha) // 3 :] = 9.0
    net.eval()
    before = net(x).detach()
    told = model(openness(net, wiring(net, x), support))
    small = run.finish()
    assert difference_of(small(x), before) < 1e-10
    after = measure(small, x)
    assert after.parameters == int(told.parameters) < whole.parameters
    assert after.macs == int(told.macs) < int(whole.macs or 0)


def test_units_leave_while_training_goes_on() -> None:
    net, x = made("dense")
    run = pr.attach(
        net,
        pr.Stack(pr.L0(price=1e-4, at="units"), pr.Shrink(every=1, multiple_of=1, saving=0.0, measure=False)),
        x[:2],
        epoch_steps=1,
    )
    optimizer = torch.optim.AdamW(run.parameter_groups(lr=1e-3))
    for gate in (module for module in net.modules() if isinstance(module, StochasticGate)):
        gate.log_alpha.data[:3] = -9.0
        gate.log_alpha.data[3:] = 9.0
        gate.freeze()
    for _ in range(3):
        optimizer.zero_grad()
        (net(x).square().mean() + run.penalty()).backward()
        run.step(optimizer)
    scaled, turned = net[0], net[2]
    assert len(scaled.scale) == len(scaled.weight) == scaled.out_features < 12
    assert tuple(turned.weight.shape) == (turned.read, turned.made)
    assert turned.made < 10
    net.eval()
    before = net(x).detach()
    assert difference_of(run.finish()(x), before) < 1e-10


@pytest.mark.parametrize("how", ["save", "pack"])
@pytest.mark.parametrize("name", NETS)
def test_a_file_brings_the_sizes_back(name: str, how: str, tmp_path: Path) -> None:
    net, x = made(name)
    net = net.float().eval()
    x = x.float()
    with torch.no_grad():
        for module in net:
            if isinstance(module, ScaledLinear):
                module.scale[:3] = 0
            elif isinstance(module, GainedDepthwise):
                module.gain[:2] = 0
    small, _ = compact(net, x)
    file = tmp_path / "net"
    (pr.save if how == "save" else pr.pack)(small, file)
    back = pr.load(NETS[name][0], file) if how == "save" else pr.unpack(NETS[name][0], file)
    assert torch.equal(back(x), small(x))
    sizes = [m.out_features for m in back if isinstance(m, ScaledLinear)]
    assert sizes == [m.out_features for m in small if isinstance(m, ScaledLinear)]
    assert max(sizes) < 12


def test_what_was_never_registered_is_said_when_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = made("dense")
    pr.save(net, tmp_path / "net")
    monkeypatch.delitem(__import__("paring.core.kinds", fromlist=["_TABLE"])._TABLE, ScaledLinear)
    with pytest.raises(pr.FileError, match="kind 'ScaledLinear', which is not known here"):
        pr.load(dense, tmp_path / "net")


def test_tensors_of_other_lengths_do_not_fit() -> None:
    layer = ScaledLinear(4, 3)
    layer.scale = nn.Parameter(torch.ones(2))
    assert misfit(layer) == "has a scale of (2,) and 3 outputs"


def test_a_subclass_is_cut_and_gated_like_its_base() -> None:
    class Mine(ScaledLinear):
        pass

    assert kind_of(Mine(2, 3)) is SCALED
    assert kind_of(nn.Tanh()) is None
    layer, x, z = Mine(2, 3), torch.randn(4, 2), torch.tensor([0.0, 0.5, 1.0])
    wanted = layer(x) * z
    put(layer, "units", Fixed(z))
    assert torch.allclose(layer(x), wanted)
    release(layer)
    assert type(layer) is Mine
    assert torch.allclose(layer(x), wanted)


def test_registering_twice_and_wrongly() -> None:
    before = kinds()
    register(SCALED)  # the same again
    assert kinds() == before

    class Linear(nn.Module):
        pass

    class Odd(nn.Module):
        pass

    for kind, error, match in (
        (Kind(Linear), ValueError, "another class called Linear is registered"),
        (Kind(ScaledLinear, "linear"), ValueError, "registered already, and not like this"),
        (Kind(Odd, gated=GatedScaledLinear), TypeError, "derive it from both"),
        (Kind(Any), TypeError, "class of nn.Module"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=match):
            register(kind)
    assert kinds() == before


def test_every_kind_of_torch_sets_the_sizes_that_its_constructor_does() -> None:
    layers: list[nn.Module] = [
        nn.Linear(5, 3),
        nn.Embedding(6, 4),
        nn.Conv1d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, 3),
        nn.Conv3d(3, 6, 2, groups=3),
        nn.ConvTranspose1d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose3d(4, 6, 2, groups=2),
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm3d(4, track_running_stats=False),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm1d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm3d(4, track_running_stats=True),
        nn.GroupNorm(2, 8),
        nn.GroupNorm(1, 8),
        nn.LayerNorm(4),
        nn.LayerNorm((3, 4)),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm((3, 4)),
        nn.PReLU(4),
    ]
    seen = set()
    for layer in layers:
        kind = kind_of(layer)
        assert kind is not None
        seen.add(kind.layer)
        told = {name: value for name, value in vars(layer).items() if isinstance(value, int | tuple)}
        kind.resize(layer)
        assert told == {name: value for name, value in vars(layer).items() if isinstance(value, int | tuple)}, layer
        assert misfit(layer) == "", layer
        weight = getattr(layer, kind.scaled[0], None)
        if isinstance(weight, Tensor):
            assert math.prod(kind.shape(layer, "weights")) == weight.numel()
    private = {nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.MultiheadAttention, *GATES}
    other = {kind.layer for kind in kinds() if not issubclass(kind.layer, nn.Linear) and kind not in MINE}
    assert {layer for layer in other if layer.__module__.startswith("torch.")} - private <= seen
