"""Conv-2, Conv-4 and Conv-6: the small VGG-like networks of the lottery-ticket papers (Frankle and Carbin 2019).

Pairs of 3x3 convolutions with 64, 128, 256 maps, each pair max-pooled by 2, then two linear layers of 256 units and the
classifier; no norms. `conv4_16` and `conv6_16` have a quarter of the widths everywhere (16, 32, 64 maps, 64 units): for
experiments on a CPU.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from paring.models.common import checked, initialised


def _conv(name: str, pairs: int, width: int, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    inputs, height, width_of_image = checked(shape, classes)
    if min(height, width_of_image) < 2**pairs:
        raise ValueError(
            f"{name} halves its images {pairs} times and needs at least {2**pairs}x{2**pairs}, "
            f"not {height}x{width_of_image}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = 0
    for pair in range(pairs):
        for _ in range(2):
            index += 1
            layers[f"conv{index}"] = nn.Conv2d(inputs, width << pair, 3, padding=1)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = width << pair
        layers[f"pool{pair + 1}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    inputs *= (height >> pairs) * (width_of_image >> pairs)
    for number in (1, 2):
        layers[f"fc{number}"] = nn.Linear(inputs, 4 * width)
        layers[f"relu_fc{number}"] = nn.ReLU()
        inputs = 4 * width
    layers["fc3"] = nn.Linear(inputs, classes)
    return initialised(nn.Sequential(layers))


def conv2(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """Conv-2, 4.3M parameters. (N, *shape) -> (N, classes). Raises ValueError for images under 2x2."""
    return _conv("conv2", 1, 64, shape, classes)


def conv4(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """Conv-4, 2.4M parameters. (N, *shape) -> (N, classes). Raises ValueError for images under 4x4."""
    return _conv("conv4", 2, 64, shape, classes)


def conv6(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """Conv-6, 2.3M parameters. (N, *shape) -> (N, classes). Raises ValueError for images under 8x8."""
    return _conv("conv6", 3, 64, shape, classes)


def conv4_16(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """Conv-4 at a quarter of its widths. (N, *shape) -> (N, classes). Raises ValueError for images under 4x4."""
    return _conv("conv4_16", 2, 16, shape, classes)


def conv6_16(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """Conv-6 at a quarter of its widths. (N, *shape) -> (N, classes). Raises ValueError for images under 8x8."""
    return _conv("conv6_16", 3, 16, shape, classes)
