"""Fully connected networks and the two LeNets of the pruning papers.

LeNet-300-100 and LeNet-5 are LeCun et al. 1998; "LeNet-5-Caffe" is the 20-50-800-500 variant that came with Caffe and
that Louizos et al. 2018 (L0) and the papers before it prune. As in theirs, and unlike Caffe's own, a ReLU follows each
convolution. Here it comes after the max-pool, at a quarter of the work: both are monotone, so the function is the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from paring.models.common import checked, initialised


def mlp(
    widths: Sequence[int],
    *,
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Flatten, then linear layers of `widths` units with ReLU (fc1, relu1, fc2, ...), then a linear classifier.

    `activation` makes what stands in the ReLUs' place. (N, *shape) -> (N, classes). No widths: a linear classifier. Raises ValueError for sizes below 1.
    """
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"widths are whole numbers >= 1, not {widths!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = math.prod(checked(shape, classes))
    for index, width in enumerate(widths, 1):
        layers[f"fc{index}"] = nn.Linear(inputs, width)
        layers[f"relu{index}"] = activation()
        inputs = width
    layers[f"fc{len(widths) + 1}"] = nn.Linear(inputs, classes)
    return initialised(nn.Sequential(layers))


def lenet_300_100(*, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-300-100: fc1 (300), fc2 (100), fc3 (classes). 266,610 parameters on MNIST. (N, *shape) -> (N, classes)."""
    return mlp((300, 100), shape=shape, classes=classes)


def lenet5_caffe(*, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-5-Caffe: conv1 (20 maps, 5x5), conv2 (50, 5x5), each max-pooled by 2, fc1 (500), fc2 (classes).

    431,080 parameters on MNIST, where fc1 reads 800 inputs. (N, *shape) -> (N, classes).
    Raises ValueError for images under 16x16: nothing would be left after the second pool.
    """
    channels, *size = checked(shape, classes)
    if min(size) < 16:
        raise ValueError(f"lenet5_caffe needs images of at least 16x16, not {size[0]}x{size[1]}; try lenet_300_100")
    height, width = (((pixels - 4) // 2 - 4) // 2 for pixels in size)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(50 * height * width, 500),
        relu3=nn.ReLU(),
        fc2=nn.Linear(500, classes),
    )
    return initialised(nn.Sequential(layers))
