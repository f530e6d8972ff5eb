"""The CIFAR networks of the hard-threshold papers (Friesen and Domingos, ICLR 2018, arXiv 1710.11573): ConvNet4 and ConvNet8.

ConvNet4: 5x5 convolutions of 32 maps (padding 3) and 64 maps (padding 2), each max-pooled by 2, then 1024 units and the
classifier; no norms. ConvNet8, DoReFa-Net's network for SVHN (Zhou et al. 2016, arXiv:1606.06160): seven convolutions, the
last over all that is left, Dropout2d in front of it, BatchNorm (eps 1e-4) on all but the first, and the classifier. The
activation comes after the pool, where there is one. `convnet4_8` is ConvNet4 at a quarter of its widths (8 and 16 maps, 256
units), for experiments on a CPU.

`activation` makes the activations, one module each; hard ones are in `paring.hard`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from paring.models.common import checked, initialised

Activation = Callable[[], nn.Module]


def _convnet4(
    name: str, width: int, shape: tuple[int, int, int], classes: int, activation: Activation
) -> nn.Sequential:
    channels, height, width_of_image = checked(shape, classes)
    sides = [(size + 2) // 2 // 2 for size in (height, width_of_image)]
    if min(sides) < 1:
        raise ValueError(f"{name} needs images of at least 2x2, not {height}x{width_of_image}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, 5, padding=3),
        pool1=nn.MaxPool2d(2),
        act1=activation(),
        conv2=nn.Conv2d(width, 2 * width, 5, padding=2),
        pool2=nn.MaxPool2d(2),
        act2=activation(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(2 * width * sides[0] * sides[1], 32 * width),
        act3=activation(),
        fc2=nn.Linear(32 * width, classes),
    )
    return initialised(nn.Sequential(layers))


def convnet4(
    *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """ConvNet4, 4.3M parameters. (N, *shape) -> (N, classes). Raises ValueError for images under 2x2."""
    return _convnet4("convnet4", 32, shape, classes, activation)


def convnet4_8(
    *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """ConvNet4 at a quarter of its widths. (N, *shape) -> (N, classes). Raises ValueError for images under 2x2."""
    return _convnet4("convnet4_8", 8, shape, classes, activation)


def convnet8(
    *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """ConvNet8. (N, *shape) -> (N, classes). Raises ValueError for images under 32x32, whose last map would be under 4x4."""
    channels, height, width = checked(shape, classes)
    if min(height, width) < 32:
        raise ValueError(f"convnet8 needs images of at least 32x32, not {height}x{width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 48, 5, padding=2), pool1=nn.MaxPool2d(2), act1=activation()
    )
    inputs = 48
    plan = (
        (64, 3, 1, False),
        (64, 3, 1, True),
        (128, 3, 0, False),
        (128, 3, 1, False),
        (128, 3, 0, False),
        (512, 4, 0, False),
    )
    for number, (maps, kernel, padding, pooled) in enumerate(plan, 2):
        if number == 7:
            layers["dropout"] = nn.Dropout2d(0.5)
        layers[f"conv{number}"] = nn.Conv2d(inputs, maps, kernel, padding=padding)
        layers[f"norm{number}"] = nn.BatchNorm2d(maps, eps=1e-4)
        if pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"act{number}"] = activation()
        inputs = maps
    left = [size // 4 - 7 for size in (height, width)]
    layers |= OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(512 * left[0] * left[1], classes))
    return initialised(nn.Sequential(layers))
