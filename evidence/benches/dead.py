"""Coupled units of the benches' networks, and three ways in which half of them do nothing, or seem to.

zero      weights, biases, and the scale and shift of the norm are 0: the unit is 0 for all who read it
constant  weights and the norm's scale are 0, biases and shift are not: the unit is a constant that its readers feel
sign      as zero; and the units that live have weights ±s that sum to 0, which a test by sums takes for dead

A unit of a residual stream is written by several layers and is dead only when all of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evidence.benches import bench_nets
from paring.models import build

Kind = Literal["zero", "constant", "sign"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Group:
    """Units that live and die together.

    Args:
        writers: layers that write these units, each with the norm that follows or None. For attention: the value
            layer, whose output the units are.
        block: neighbouring rows per unit; the size of a head.
        asks: layers that only decide how the units are mixed (query and key), cut with them.
    """

    writers: tuple[tuple[str, str | None], ...]
    block: int = 1
    asks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A network to shrink: its builder, the shape of one example, and its groups."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    groups: tuple[Group, ...]


def _chain(*pairs: tuple[str, str | None]) -> tuple[Group, ...]:
    return tuple(Group((pair,)) for pair in pairs)


def _residual(blocks: Sequence[int], inner: int) -> tuple[Group, ...]:
    """Groups of a residual network of stages: `inner` hidden convolutions a block, then one that writes the stream."""
    hidden: list[Group] = []
    streams: list[Group] = []
    for stage, count in enumerate(blocks, 1):
        stream: list[tuple[str, str | None]] = []
        if stage == 1 and inner == 1:
            stream.append(("conv1", "bn1"))
        else:
            stream.append((f"stage{stage}.0.shortcut.conv", f"stage{stage}.0.shortcut.bn"))
        for block in range(count):
            at = f"stage{stage}.{block}"
            hidden += _chain(*((f"{at}.conv{i}", f"{at}.bn{i}") for i in range(1, inner + 1)))
            stream.append((f"{at}.conv{inner + 1}", f"{at}.bn{inner + 1}"))
        streams.append(Group(tuple(stream)))
    stem = _chain(("conv1", "bn1")) if inner > 1 else ()
    return (*stem, *streams, *hidden)


def _transformer(depth: int, head: int) -> tuple[Group, ...]:
    found: list[Group] = []
    for index in range(depth):
        at = f"blocks.{index}"
        parts = {name: f"{at}.attention.{name}" for name in "qkv"}
        found.append(Group(((parts["v"], None),), head, (parts["q"], parts["k"])))
        found.append(Group(((f"{at}.fc1", None),)))
    return tuple(found)


def _model(name: str, shape: tuple[int, int, int], groups: tuple[Group, ...]) -> Subject:
    return Subject(lambda: build(name, shape=shape, classes=10), shape, groups)


_VGG16 = _chain(*((f"conv{i}", f"bn{i}") for i in range(1, 14)))
SUBJECTS: dict[str, Subject] = {
    "lenet_300_100": _model("lenet_300_100", (1, 28, 28), _chain(("fc1", None), ("fc2", None))),
    "mlp_bn": Subject(bench_nets.mlp_bn, (1, 28, 28), _chain(("fc1", "bn1"), ("fc2", "bn2"))),
    "conv_bn": Subject(bench_nets.conv_bn, (3, 32, 32), _chain(("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))),
    "lenet5_caffe": _model("lenet5_caffe", (1, 28, 28), _chain(("conv1", None), ("conv2", None), ("fc1", None))),
    "vgg16": _model("vgg16", (3, 32, 32), _VGG16),
    "resnet20": _model("resnet20", (3, 32, 32), _residual((3, 3, 3), 1)),
    "resnet50": Subject(bench_nets.resnet50, (3, 224, 224), _residual((3, 4, 6, 3), 2)),
    "vit": Subject(bench_nets.Vit, (3, 32, 32), _transformer(6, 32)),
}


def width(net: nn.Module, group: Group) -> int:
    """Number of units of the group."""
    weight = net.get_submodule(group.writers[0][0]).weight
    assert isinstance(weight, Tensor)
    return weight.shape[0] // group.block


def rows(units: Tensor, block: int) -> Tensor:
    """Rows of a layer that belong to these units."""
    return (units[:, None] * block + torch.arange(block)).flatten()


@torch.no_grad()
def randomise(net: nn.Module, generator: torch.Generator) -> None:
    """Biases, and norms as after training: nothing is 0 or 1 by initialisation."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            if module.weight is not None:
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            if module.bias is not None:
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert isinstance(module.running_mean, Tensor)
            assert isinstance(module.running_var, Tensor)
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))


@torch.no_grad()
def kill(net: nn.Module, group: Group, units: Tensor, kind: Kind, generator: torch.Generator) -> None:
    """Make these units of the group dead, in one of the three ways."""
    dead = rows(units, group.block)
    for layer, norm in group.writers:
        module = net.get_submodule(layer)
        assert isinstance(module.weight, Tensor)
        if kind == "sign":
            _signs(module.weight, generator)
        module.weight[dead] = 0
        if kind != "constant":
            _clear(module, "bias", dead)
        if norm is not None:
            _clear(net.get_submodule(norm), "weight", dead)
            if kind != "constant":
                _clear(net.get_submodule(norm), "bias", dead)
    if kind != "constant":
        for layer in group.asks:
            _clear(net.get_submodule(layer), "weight", dead)
            _clear(net.get_submodule(layer), "bias", dead)


def _clear(module: nn.Module, leaf: str, dead: Tensor) -> None:
    value = getattr(module, leaf)
    if value is not None:
        value[dead] = 0


def _signs(weight: Tensor, generator: torch.Generator) -> None:
    """Rows of ±s that sum to exactly 0 (one entry is 0 if their number is odd); s² is near 1 / fan-in."""
    fan = weight[0].numel()
    half = torch.cat([torch.ones(fan // 2), -torch.ones(fan // 2), torch.zeros(fan % 2)])
    scale = 2.0 ** -round(math.log2(fan) / 2)
    for row in weight:
        row.copy_(scale * half[torch.randperm(fan, generator=generator)].view_as(row))


def half_dead(subject: Subject, kind: Kind, seed: int = 0) -> tuple[nn.Module, list[tuple[Group, Tensor]]]:
    """The subject's network in eval mode with half the units of every group dead, and which."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = subject.make().eval()
    generator = torch.Generator().manual_seed(seed)
    randomise(net, generator)
    found = []
    for group in subject.groups:
        count = width(net, group)
        units = torch.randperm(count, generator=generator)[: count // 2].sort().values
        kill(net, group, units, kind, generator)
        found.append((group, units))
    return net, found
