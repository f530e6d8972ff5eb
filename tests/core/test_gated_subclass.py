"""Gates in layers that derive from known ones and bring a forward of their own, as timm's and transformers' do."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import Gate, PlaceKind, derived, gate_shape, gates, put, release
from paring.testing import difference
from tests.core.test_layers import Fixed

F64 = torch.float64


class NormAct(nn.BatchNorm2d):
    """A norm with its activation inside, by way of the base class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class FunctionalNormAct(nn.BatchNorm2d):
    """The same, calling the function."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.silu(y)


class GroupNormAct(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class SameConv(nn.Conv2d):
    """Pads what it reads by itself, and adds an activation."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0, 0, 1))
        return F.silu(F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups))


class Router(nn.Linear):
    """Scores of experts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class Offset(nn.Embedding):
    """Positions, counted from two, as BART does."""

    def forward(self, ids: Tensor) -> Tensor:
        return 3.0 * super().forward(ids + 2)


def before_activation(layer: nn.Module, x: Tensor, z: Tensor, place: PlaceKind) -> Tensor:
    """What the forward has to give, by hand: the operation's input, weight or result is multiplied, `z` (batch, n) or (n,)."""
    w: Tensor = layer.get_parameter("weight")
    b = layer._parameters.get("bias")
    if place == "weights":
        w = w * z
    spatial = [1, 1] if x.dim() == 4 else [1] * (x.dim() - 2)
    lead = z.shape[:-1] or torch.Size([1])
    channels = z.view(*lead, z.shape[-1], 1, 1) if x.dim() == 4 else z.view(*lead, *spatial, z.shape[-1])
    x_in = x * channels if place == "inputs" else x
    if isinstance(layer, NormAct | FunctionalNormAct):
        y = F.batch_norm(x_in, layer.running_mean, layer.running_var, w, b, layer.training, 0.0, layer.eps)
    elif isinstance(layer, GroupNormAct):
        y = F.group_norm(x_in, layer.num_groups, w, b, layer.eps)
    elif isinstance(layer, SameConv):
        y = F.conv2d(F.pad(x_in, (1, 0, 0, 1)), w, b, layer.stride, groups=layer.groups)
    elif isinstance(layer, Router):
        y = F.linear(x_in, w, b)
    else:
        y = F.embedding(x + 2, w)
        channels = z.view(*lead, 1, z.shape[-1])
    y = y * channels if place == "units" else y
    return y.sigmoid() if isinstance(layer, Router) else 3.0 * y if isinstance(layer, Offset) else F.silu(y)


CASES: list[tuple[nn.Module, tuple[int, ...], PlaceKind]] = [
    (NormAct(4), (5, 4, 3, 3), "units"),
    (FunctionalNormAct(4), (5, 4, 3, 3), "units"),
    (GroupNormAct(2, 4), (5, 4, 3, 3), "units"),
    (SameConv(4, 6, 2, bias=False), (5, 4, 6, 5), "units"),
    (SameConv(4, 6, 2), (5, 4, 6, 5), "inputs"),
    (SameConv(4, 6, 2, groups=2), (5, 4, 6, 5), "units"),
    (SameConv(4, 6, 2, groups=2), (5, 4, 6, 5), "inputs"),
    (SameConv(4, 6, 2, stride=2), (5, 4, 6, 5), "weights"),
    (Router(4, 6), (5, 7, 4), "units"),
    (Router(4, 6), (5, 4), "inputs"),
    (Router(4, 6, bias=False), (5, 4), "weights"),
    (Offset(9, 4), (5, 3), "units"),
    (Offset(9, 4), (5, 3), "weights"),
]


@pytest.mark.parametrize(
    ("layer", "shape", "place"), CASES, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("per_example", [True, False])
def test_gates_act_on_the_operation(
    layer: nn.Module, shape: tuple[int, ...], place: PlaceKind, training: bool, per_example: bool
) -> None:
    torch.manual_seed(1)
    stock = copy.deepcopy(layer).double().train(training)
    for buffer in stock.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    for parameter in stock.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    gated = copy.deepcopy(stock)
    per_example = per_example and place != "weights"
    rows = (shape[0],) if per_example and training else ()
    z = torch.rand(*rows, *gate_shape(stock, place), dtype=F64)
    z.view(-1)[0] = 0
    put(gated, place, Rows(z) if rows else Fixed(z))
    x = torch.randint(0, 7, shape) if isinstance(layer, Offset) else torch.randn(shape, dtype=F64)
    assert torch.allclose(gated(x), before_activation(copy.deepcopy(stock), x, z, place), atol=1e-12)
    if rows:
        return
    twin = pickle.loads(pickle.dumps(copy.deepcopy(gated)))
    assert type(twin) is type(gated)
    stream = io.BytesIO()
    torch.save(twin, stream)
    net = nn.Sequential(gated).eval()
    wanted = net(x)
    assert torch.equal(twin.eval()(x), wanted)
    release(net)
    assert type(net[0]) is type(layer)
    assert not list(gates(net))
    assert torch.allclose(net(x), wanted, atol=1e-12)
    assert set(net[0].state_dict()) == set(layer.state_dict())


class Rows(Gate):
    """One row for each example in training."""

    z: Tensor

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.register_buffer("z", z)

    @property
    def shape(self) -> torch.Size:
        return self.z.shape[1:]

    @property
    def per_example(self) -> bool:
        return True

    def forward(self, batch: int | None = None) -> Tensor:
        return self.z

    def prob_open(self) -> Tensor:
        return self.value()

    def value(self) -> Tensor:
        return self.z.mean(0)


def test_gradients_of_gates_are_those_of_the_product() -> None:
    torch.manual_seed(0)
    layer = NormAct(4).double()
    x, z = torch.randn(5, 4, 3, 3, dtype=F64), torch.rand(4, dtype=F64, requires_grad=True)
    gated, gate = copy.deepcopy(layer), Fixed(z.detach())
    put(gated, "units", gate)
    wanted = torch.autograd.grad(before_activation(layer, x, z, "units").square().sum(), z)[0]
    found = torch.autograd.grad(gated(x).square().sum(), gate.z)[0]
    assert torch.allclose(found, wanted)


def test_what_is_no_parameter_of_its_own_is_refused() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert derived(layer)
    with pytest.raises(TypeError, match="its weight is no parameter of its own"):
        put(layer, "units", Fixed(torch.ones(4)))
    shift = nn.Linear(3, 4)
    torch.nn.utils.parametrize.register_parametrization(shift, "bias", nn.Identity())
    with pytest.raises(TypeError, match="its bias is no parameter of its own"):
        put(shift, "units", Fixed(torch.ones(4)))


class Standardised(nn.Conv2d):
    """Reads its weight standardised, so that no gate can act on the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-6)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Tower(nn.Sequential):
    def __init__(self, norm: Any = NormAct, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__(
            conv(3, 8, 3, padding=1), norm(8), conv(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)
        )


def test_weights_that_the_forward_computes_take_no_gate_and_say_so() -> None:
    rows = list(pr.groups(Tower(nn.BatchNorm2d, Standardised), torch.randn(2, 3, 8, 8)))
    assert [row.gateable for row in rows] == [False, False, False]
    assert "its weight is computed in the forward" in rows[0].reason
    with pytest.raises(ValueError, match="its weight is computed in the forward"):
        pr.attach(Tower(nn.BatchNorm2d, Standardised), pr.GMP(at="weights:0"), example=torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("norm", [NormAct, FunctionalNormAct, lambda c: GroupNormAct(4, c)])
@pytest.mark.parametrize("method", [pr.L0(3e-2), pr.L0(3e-2, per_example=True)])
def test_a_network_of_them_trains_and_finishes_to_the_same_function(norm: Any, method: pr.L0) -> None:
    torch.manual_seed(0)
    net, x = Tower(norm), torch.randn(6, 3, 8, 8)
    assert [row.gateable for row in pr.groups(net, x)] == [True, True, False]
    opt = torch.optim.SGD(net.parameters(), 0.1)
    run = pr.attach(net, method, example=x, optimizer=opt, steps=4)
    for _ in range(4):
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    for _, _, gate in gates(net):
        gate.get_parameter("log_alpha").data[: len(gate.shape) and gate.shape[0] // 2] = -5.0
    small = run.finish()
    assert difference(small, net, x) < 1e-5
    assert small.get_parameter("0.weight").shape[0] == 4
    assert type(small.get_submodule("1")) is type(Tower(norm)[1])
