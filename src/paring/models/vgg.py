"""VGG for CIFAR: the convolutions of Simonyan and Zisserman 2015 (arXiv:1409.1556), each with BatchNorm.

One linear classifier on the 512 averaged maps stands in place of the three layers for ImageNet, as the pruning papers have it.

The convolutions have no bias: the BatchNorm that follows would take it away again.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from paring.models.common import checked, initialised

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


def _vgg(depth: int, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    inputs, height, width = checked(shape, classes)
    if min(height, width) < 32:
        raise ValueError(f"vgg{depth} halves its images five times and needs at least 32x32, not {height}x{width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = 0
    for stage, (count, outputs) in enumerate(zip(_STAGES[depth], _WIDTHS, strict=True), 1):
        for _ in range(count):
            index += 1
            layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = outputs
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers |= OrderedDict(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes))
    return initialised(nn.Sequential(layers))


def vgg11(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """VGG-11, 8 convolutions. (N, *shape) -> (N, classes). Raises ValueError for images under 32x32."""
    return _vgg(11, shape, classes)


def vgg13(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """VGG-13, 10 convolutions. (N, *shape) -> (N, classes). Raises ValueError for images under 32x32."""
    return _vgg(13, shape, classes)


def vgg16(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """VGG-16, 13 convolutions, 14.72M parameters. (N, *shape) -> (N, classes). Raises ValueError under 32x32."""
    return _vgg(16, shape, classes)


def vgg19(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """VGG-19, 16 convolutions. (N, *shape) -> (N, classes). Raises ValueError for images under 32x32."""
    return _vgg(19, shape, classes)
