"""Small versions of well-known convolutional networks, and how to make their units dead.

`SPOTS` lists for every model where units can die, and what becomes of them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if act else []))


class Basic(nn.Module):
    """ResNet's basic block; gate: a squeeze-excite before the add."""

    def __init__(self, cin: int, cout: int, stride: int = 1, gate: bool = False) -> None:
        super().__init__()
        self.first, self.second = conv_bn(cin, cout, 3, stride), conv_bn(cout, cout, act=False)
        self.short = nn.Identity() if cin == cout and stride == 1 else conv_bn(cin, cout, 1, stride, act=False)
        self.gate = nn.Sequential(nn.Linear(cout, 4), nn.ReLU(), nn.Linear(4, cout), nn.Sigmoid()) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3)))[:, :, None, None]
        return F.relu(y + self.short(x))


class Bottleneck(nn.Module):
    """ResNet's bottleneck; also of ResNeXt with groups."""

    def __init__(self, cin: int, inner: int, cout: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv_bn(cin, inner, 1), conv_bn(inner, inner, 3, stride, groups)
        self.third = conv_bn(inner, cout, 1, act=False)
        self.short = nn.Identity() if cin == cout and stride == 1 else conv_bn(cin, cout, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.third(self.second(self.first(x))) + self.short(x))


class PreActivation(nn.Module):
    """Norm and activation before each convolution; the shortcut reads the activated input."""

    def __init__(self, cin: int, cout: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(cout), nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.short = nn.Identity() if cin == cout and stride == 1 else nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        short = x if isinstance(self.short, nn.Identity) else self.short(h)
        return self.conv2(self.dropout(F.relu(self.norm2(self.conv1(h))))) + short


class Inverted(nn.Module):
    """MobileNetV2: widen, depthwise, narrow without activation."""

    def __init__(self, cin: int, cout: int, stride: int = 1, widen: int = 3) -> None:
        super().__init__()
        inner = cin * widen
        self.up, self.deep = conv_bn(cin, inner, 1), conv_bn(inner, inner, 3, stride, inner)
        self.down, self.add = conv_bn(inner, cout, 1, act=False), cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.deep(self.up(x)))
        return x + y if self.add else y


class Dense(nn.Module):
    """DenseNet: every layer reads all before it."""

    def __init__(self, cin: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [cin + growth * i for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.squeezes = nn.ModuleList(nn.Conv2d(w, 2 * growth, 1, bias=False) for w in widths)
        self.inner = nn.ModuleList(nn.BatchNorm2d(2 * growth) for _ in widths)
        self.convs = nn.ModuleList(nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False) for _ in widths)

    def forward(self, x: Tensor) -> Tensor:
        for norm, squeeze, inner, conv in zip(self.norms, self.squeezes, self.inner, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(inner(squeeze(F.relu(norm(x))))))], 1)
        return x


class UNet(nn.Module):
    """Down, up by a transposed convolution, and skips by concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, width), conv_bn(width, 2 * width)
        self.middle = conv_bn(2 * width, 3 * width)
        self.up2 = nn.ConvTranspose2d(3 * width, 2 * width, 2, 2)
        self.join2 = conv_bn(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.join1, self.out = conv_bn(2 * width, width), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        deep = self.middle(F.max_pool2d(two, 2))
        two = self.join2(torch.cat([two, self.up2(deep)], 1))
        return self.out(self.join1(torch.cat([one, self.up1(two)], 1)))


def pooled(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def resnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Basic(8, 8), Basic(8, 12, 2), Basic(12, 12), *pooled(12))


def resnext() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Bottleneck(8, 8, 16, 1, 4), Bottleneck(16, 8, 16, 1, 4), *pooled(16))


def resnet50() -> nn.Module:
    """At full size: 25.6 million parameters."""
    parts, channels = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for i in range(blocks):
            parts.append(Bottleneck(channels, width, 4 * width, 2 if stage and not i else 1))
            channels = 4 * width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def se_resnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Basic(8, 8, 1, True), Basic(8, 12, 2, True), *pooled(12))


def pre_activation() -> nn.Module:
    blocks = [PreActivation(8, 8), PreActivation(8, 12, 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(12), nn.ReLU(), *pooled(12))


def wide_resnet() -> nn.Module:
    blocks = [PreActivation(4, 8, 1, 0.3), PreActivation(8, 8, 1, 0.3), PreActivation(8, 16, 2, 0.3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(16), nn.ReLU(), *pooled(16))


def vgg() -> nn.Module:
    convs = [conv_bn(3, 8), conv_bn(8, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2)]
    hidden = [nn.Flatten(), nn.Linear(12 * 9, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 3)]
    return nn.Sequential(*convs, *hidden)


def mobilenet() -> nn.Module:
    blocks = [Inverted(6, 6), Inverted(6, 8, 2), Inverted(8, 8)]
    return nn.Sequential(conv_bn(3, 6, 3, 2), *blocks, conv_bn(8, 16, 1), *pooled(16))


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 8, 1, bias=False), nn.AvgPool2d(2)]
    last = [nn.BatchNorm2d(16), nn.ReLU(), *pooled(16)]
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), Dense(6, 4, 2), *transition, Dense(8, 4, 2), *last)


def unet() -> nn.Module:
    return UNet(4)


@dataclass(frozen=True)
class Spot:
    """Units that only go together. layers: that lose them. norms: that decide what they are (none: the bias does).

    reader: "fold" when constants disappear, "merge" when one of them stays, "group" when whole groups of two disappear.
    noisy: dropout behind them, so that constants are none in train mode.
    """

    layers: tuple[str, ...]
    norms: tuple[str, ...] = ()
    reader: str = "merge"
    noisy: bool = False


def _blocks(*paths: str, reader: str = "merge", noisy: bool = False) -> list[Spot]:
    return [Spot((f"{p}.0",), (f"{p}.1",), reader, noisy) for p in paths]


def _stream(*paths: str, reader: str = "merge") -> Spot:
    return Spot(tuple(f"{p}.0" for p in paths), tuple(f"{p}.1" for p in paths), reader)


SPOTS: dict[Callable[[], nn.Module], list[Spot]] = {
    resnet: [
        *_blocks("1.first", "2.first", "3.first"),
        _stream("0", "1.second"),
        _stream("2.second", "2.short", "3.second"),
    ],
    resnext: [
        *(Spot((f"{i}.first.0", f"{i}.second.0"), (f"{i}.second.1",), "group") for i in (1, 2)),
        _stream("1.third", "1.short", "2.third", reader="fold"),
    ],
    se_resnet: [*_blocks("1.first", "2.first"), Spot(("1.gate.0",), (), "fold"), Spot(("2.gate.0",), (), "fold")],
    pre_activation: [Spot((f"{i}.conv1",), (f"{i}.norm2",)) for i in (1, 2)],
    wide_resnet: [Spot((f"{i}.conv1",), (f"{i}.norm2",), noisy=True) for i in (1, 2, 3)],
    vgg: [*_blocks("0", "1"), *_blocks("3", reader="fold"), Spot(("6",), (), "fold", noisy=True)],
    mobilenet: [
        *(Spot((f"{i}.up.0", f"{i}.deep.0"), (f"{i}.deep.1",), "fold") for i in (1, 2, 3)),
        _stream("0", "1.down", reader="fold"),
        _stream("2.down", "3.down", reader="fold"),
        *_blocks("4", reader="fold"),
    ],
    densenet: [
        *(Spot((f"{i}.squeezes.{j}",), (f"{i}.inner.{j}",)) for i in (1, 6) for j in (0, 1)),
        Spot(("1.convs.0",), (), "fold"),
        Spot(("4",), (), "fold"),
        Spot(("6.convs.1",), (), "fold"),
    ],
    unet: [
        *_blocks("down1", "down2", "middle"),
        *_blocks("join2"),
        *_blocks("join1", reader="fold"),
        Spot(("up2",), (), "fold"),  # the constants of down2 that stay for the others stand for these as well
        Spot(("up1",), (), "fold"),
    ],
}


def shake(net: nn.Module, generator: torch.Generator) -> None:
    """Random weights and statistics, none of them zero."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.weight.normal_(0, 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2.0, generator=generator)
                module.bias.normal_(generator=generator)
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)


def decoy(layer: nn.Module, unit: int) -> None:
    """Weights +1 and -1 that sum to zero."""
    with torch.no_grad():
        weight = layer.weight[:, unit] if isinstance(layer, nn.ConvTranspose2d) else layer.weight[unit]
        flat = torch.ones(weight.numel(), dtype=weight.dtype)
        flat[1::2] = -1
        if len(flat) % 2:
            flat[-1] = 0
        weight.copy_(flat.view_as(weight))
