"""What repeats itself is stored once: the same interpretation as with memory of its own for every entry."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from paring.analysis.capture import capture
from paring.analysis.interpret import interpret
from paring.analysis.repeats import cat, either, filled, once, settled
from paring.removal.free_plan import free_plan
from paring.removal.plan import make_plan
from tests.removal import test_random, test_random_nets
from tests.removal.transformers_zoo import GPT, ViT
from tests.removal.zoo import SPOTS, shake

INTERPRETER = importlib.import_module("paring.analysis.interpreter")
QUICK = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def same(one: Any, other: Any, where: str = "") -> None:
    """Assert that two trees of dataclasses, containers and tensors hold the same, numbers up to rounding."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.shape == other.shape, where
        if one.is_floating_point():
            assert torch.allclose(one, other, rtol=1e-12, atol=0.0, equal_nan=True), where
        else:
            assert torch.equal(one, other), where
    elif is_dataclass(one):
        for part in fields(one):
            same(getattr(one, part.name), getattr(other, part.name), f"{where}.{part.name}")
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key, value in one.items():
            same(value, other[key], f"{where}[{key}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif not isinstance(one, nn.Module):
        assert one == other, where


def everything(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The naive twin of `shared`: every result has memory of its own, as large as the activation."""
    return set(nodes)


def check(net: nn.Module, x: Tensor) -> None:
    captured = capture(net, x)
    for free, training in ((False, False), (False, True), (True, False)):
        found = interpret(net, captured, training=training, free=free)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(INTERPRETER, "shared", everything)
            naive = interpret(net, captured, training=training, free=free)
        same(found, naive)
        make = free_plan if free else make_plan
        same(make(found), make(naive))


@QUICK
@given(test_random.mlps())
def test_random_mlps(case: tuple[nn.Sequential, Tensor]) -> None:
    check(*case)


@QUICK
@given(test_random.convnets())
def test_random_convnets(case: tuple[nn.Sequential, Tensor]) -> None:
    check(*case)


@QUICK
@given(test_random_nets.nets())
def test_random_nets_of_mixed_parts(case: tuple[nn.Sequential, Tensor]) -> None:
    check(*case)


@pytest.mark.parametrize("make", SPOTS, ids=lambda make: make.__name__)
def test_well_known_networks(make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = make()
    shake(net, generator)
    for layer in [m for m in net.modules() if isinstance(m, nn.Conv2d)][::2]:
        layer.weight.data[::2] = 0
    check(net.eval(), torch.randn(2, 3, 12, 12, generator=generator))


@pytest.mark.parametrize("make", [ViT, GPT])
def test_transformers(make: Any) -> None:
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(2, 3, 8, 8) if make is ViT else torch.randint(10, (2, 6))
    for layer in [m for m in net.modules() if isinstance(m, nn.Linear)][::2]:
        layer.weight.data[::2] = 0
    check(net, x)


class Writes(nn.Module):
    """Writes into its activations, through a view or not, before they are read again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 16, 3)
        for layer in (self.first, self.second):
            layer.weight.data[::3] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.how == "itself":
            z = y.relu_()
            return self.head((self.second(z) + y).flatten(1))
        if self.how == "part":
            y[:, 2:5].zero_()
        elif self.how == "row":
            y[0].mul_(2.0)
        elif self.how == "border":
            y[:, :, 0] = 0.0
        elif self.how == "base":
            view = y.flatten(1)
            y.clamp_(min=0.5)
            return self.head(view)
        elif self.how == "chunk":
            left, _ = y.chunk(2, 1)
            left.sigmoid_()
        elif self.how == "sum":
            y += self.second(y)
        elif self.how == "broadcast":
            y *= torch.sigmoid(self.second(y).mean((2, 3), keepdim=True))
        return self.head(self.second(y).flatten(1))


@pytest.mark.parametrize("how", ["itself", "part", "row", "border", "base", "chunk", "sum", "broadcast"])
def test_what_is_written_in_place(how: str) -> None:
    torch.manual_seed(0)
    check(Writes(how).eval(), torch.randn(2, 3, 4, 4))


@QUICK
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_what_is_stored_once_is_the_same_tensor(shape: list[int], data: st.DataObject) -> None:
    def draw() -> Tensor:
        sizes = [n if data.draw(st.booleans()) else 1 for n in shape]
        values = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, torch.nan]), min_size=1, max_size=3)))
        small = values[torch.arange(torch.Size(sizes).numel()) % len(values)].double().view(sizes)
        return small.expand(shape)

    a, b = draw(), draw()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paring.analysis.repeats.SMALL", 0)
        found = settled(a.contiguous())
    bits = [t.signbit() & ~t.isnan() for t in (found, a)]
    assert torch.equal(found.nan_to_num(7.0), a.nan_to_num(7.0))
    assert torch.equal(bits[0], bits[1])
    for d in range(a.dim()):
        alike = bool((a.narrow(d, 0, 1).nan_to_num(7.0) == a.nan_to_num(7.0)).all())
        if alike and not bool((a == 0).any()):
            assert once(found).shape[d] == 1
    assert torch.equal(once(a).expand(shape).nan_to_num(7.0), a.nan_to_num(7.0))
    for d in range(a.dim()):
        assert torch.equal(cat([a, b], d).nan_to_num(7.0), torch.cat([a, b], d).nan_to_num(7.0))
    left, right = (t.nan_to_num(-1.0).long() - 1 for t in (a, b))
    assert torch.equal(either(left, right), torch.where(left >= 0, left, right))
    assert torch.equal(filled(shape, 2.0), torch.full(shape, 2.0).double())
