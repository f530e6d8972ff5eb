"""Gated layers against plain arithmetic, and the way back to stock layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from paring.core import Clock, Gate, PlaceKind, Stack, gate_shape, gated_layers, gates, kinds, put, release


class Fixed(Gate):
    """A gate with a given multiplier, the same in training and evaluation."""

    def __init__(self, value: Tensor, per_example: bool = False) -> None:
        super().__init__()
        self.z = nn.Parameter(value)
        self._per_example = per_example

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    @property
    def per_example(self) -> bool:
        return self._per_example

    def forward(self, batch: int | None = None) -> Tensor:
        if self.training and self._per_example and batch is not None:
            return self.z.expand(batch, *self.z.shape)
        return self.z

    def prob_open(self) -> Tensor:
        return (self.z != 0).to(self.z.dtype)

    def value(self) -> Tensor:
        return self.z


CASES: list[tuple[str, nn.Module, tuple[int, ...], PlaceKind]] = [
    ("linear", nn.Linear(4, 3), (5, 4), "units"),
    ("linear", nn.Linear(4, 3), (5, 4), "inputs"),
    ("linear", nn.Linear(4, 3), (5, 4), "weights"),
    ("linear, sequence", nn.Linear(4, 3, bias=False), (5, 7, 4), "units"),
    ("linear, sequence", nn.Linear(4, 3), (5, 7, 4), "inputs"),
    ("conv1d", nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), "units"),
    ("conv1d", nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), "inputs"),
    ("conv2d", nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8), "units"),
    ("conv2d", nn.Conv2d(4, 6, 3, stride=2, padding_mode="circular", padding=1), (2, 4, 9, 8), "inputs"),
    ("conv2d, groups", nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 8), "inputs"),
    ("conv2d, groups", nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 8), "weights"),
    ("conv3d", nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 3), "units"),
    ("conv3d", nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 3), "inputs"),
    ("batchnorm1d", nn.BatchNorm1d(4), (6, 4), "units"),
    ("batchnorm2d", nn.BatchNorm2d(4), (6, 4, 3, 3), "units"),
    ("batchnorm2d, cumulative", nn.BatchNorm2d(4, momentum=None), (6, 4, 3, 3), "units"),
    ("batchnorm3d", nn.BatchNorm3d(4), (6, 4, 2, 3, 3), "units"),
    ("groupnorm", nn.GroupNorm(2, 4), (6, 4, 3), "units"),
    ("groupnorm, one", nn.GroupNorm(1, 4), (6, 4, 3, 3), "units"),
    ("instancenorm1d", nn.InstanceNorm1d(4, affine=True), (6, 4, 5), "units"),
    ("instancenorm2d", nn.InstanceNorm2d(4, affine=True), (6, 4, 3, 3), "units"),
    ("instancenorm2d, tracked", nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (6, 4, 3, 3), "units"),
    ("instancenorm3d", nn.InstanceNorm3d(4, affine=True), (6, 4, 2, 3, 3), "units"),
]


def axis_of(layer: nn.Module, x: Tensor) -> int:
    return x.dim() - 1 if isinstance(layer, nn.Linear | nn.Embedding) else 1


def shaped(z: Tensor, x: Tensor, axis: int) -> Tensor:
    return z.view([-1 if d == axis else 1 for d in range(x.dim())])


@pytest.mark.parametrize(("name", "layer", "shape", "kind"), CASES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("per_example", [True, False])
def test_multiplies_what_it_says(
    name: str, layer: nn.Module, shape: tuple[int, ...], kind: PlaceKind, training: bool, per_example: bool
) -> None:
    torch.manual_seed(1)
    plain = copy.deepcopy(layer).double().train(training)
    gated = copy.deepcopy(plain)
    z = torch.rand(gate_shape(plain, kind), dtype=torch.float64)
    z.view(-1)[0] = 0
    put(gated, kind, Fixed(z, per_example and kind != "weights"))
    x = torch.randn(shape, dtype=torch.float64)
    if kind == "units":
        y = plain(x)
        wanted = y * shaped(z, y, axis_of(plain, y))
    elif kind == "inputs":
        wanted = plain(x * shaped(z, x, axis_of(plain, x)))
    else:
        plain.get_parameter("weight").data.mul_(z)
        wanted = plain(x)
    assert torch.allclose(gated(x), wanted, atol=1e-12)
    for key, value in plain.named_buffers():
        assert torch.equal(value, dict(gated.named_buffers())[key]), f"{key} moved differently"
    net = nn.Sequential(gated).eval()
    before = net(x)
    release(net)
    assert type(net[0]) is type(layer)
    assert not list(gates(net))
    assert torch.allclose(net(x), before, atol=1e-12)
    assert set(net[0].state_dict()) == set(layer.state_dict())


@pytest.mark.parametrize("kind", ["units", "weights"])
def test_embedding(kind: PlaceKind) -> None:
    plain = nn.Embedding(7, 4).double()
    gated = copy.deepcopy(plain)
    z = torch.rand(gate_shape(plain, kind), dtype=torch.float64)
    put(gated, kind, Fixed(z))
    x = torch.randint(0, 7, (3, 5))
    wanted = nn.functional.embedding(x, plain.weight * z)
    assert torch.allclose(gated(x), wanted)
    net = nn.Sequential(gated)
    release(net)
    assert type(net[0]) is nn.Embedding
    assert torch.allclose(net(x), wanted)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="Bilinear cannot carry gates"):
        put(nn.Bilinear(2, 2, 2), "units", Fixed(torch.ones(2)))
    with pytest.raises(TypeError, match="SyncBatchNorm cannot carry gates"):
        put(nn.SyncBatchNorm(2), "units", Fixed(torch.ones(2)))
    with pytest.raises(TypeError, match="no scale"):
        put(nn.InstanceNorm2d(2), "units", Fixed(torch.ones(2)))
    with pytest.raises(TypeError, match="a norm has unit gates only"):
        put(nn.BatchNorm1d(2), "inputs", Fixed(torch.ones(2)))
    with pytest.raises(TypeError, match="no scale"):
        put(nn.BatchNorm1d(2, affine=False), "units", Fixed(torch.ones(2)))
    with pytest.raises(TypeError, match="no features"):
        put(nn.Embedding(2, 2), "inputs", Fixed(torch.ones(2)))
    with pytest.raises(ValueError, match=r"needs shape \(3,\), got \(2,\)"):
        put(nn.Linear(2, 3), "units", Fixed(torch.ones(2)))
    layer = nn.Linear(2, 3)
    put(layer, "units", Fixed(torch.ones(3)))
    with pytest.raises(ValueError, match="already has a gate"):
        put(layer, "units", Fixed(torch.ones(3)))


def test_every_stock_layer_has_a_gated_twin_with_the_same_forward_signature() -> None:
    pairs = [(kind.layer, kind.gated) for kind in kinds() if kind.gated is not None]
    assert len(pairs) >= 9
    for stock, gated in pairs:
        assert issubclass(gated, stock)
        assert gated.__name__ == f"Gated{stock.__name__}"


def test_sequential_stays_callable_and_finds_its_gates() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    put(net[0], "units", Fixed(torch.ones(4)))
    put(net[2], "inputs", Fixed(torch.ones(4)))
    assert [name for name, _ in gated_layers(net)] == ["0", "2"]
    assert [(name, kind) for name, kind, _ in gates(net)] == [("0", "units"), ("2", "inputs")]
    assert net(torch.ones(1, 3)).shape == (1, 2)


def test_clock() -> None:
    clock = Clock(step=5, steps=20, epoch_steps=4)
    assert clock.fraction == 0.25
    assert clock.epoch == 1.25
    assert Clock().fraction is None
    assert Clock().epoch is None
    with pytest.raises(ValueError, match="steps=0"):
        Clock(steps=0)


def test_stack_refuses_what_is_no_method() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Stack()
    with pytest.raises(TypeError, match="takes methods"):
        Stack(3)  # type: ignore[arg-type]
