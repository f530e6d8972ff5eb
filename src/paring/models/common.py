"""What all builders share: the check of shape and classes, and the initialisation.

He et al. 2015 (arXiv:1502.01852): every weight is normal with mean 0 and variance 2 / fan_in, where fan_in is the
number of inputs that one unit really sums, in_channels / groups * kernel; biases are 0; BatchNorm is 1 and 0. This is
what the L0 authors use (Louizos et al. 2018), their classifiers included; only their biases without a gate, which start
at N(0, 0.01^2), are 0 here too.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def checked(shape: tuple[int, int, int], classes: int) -> tuple[int, int, int]:
    """`shape` as (channels, height, width). Raises ValueError unless all of it and `classes` are whole numbers >= 1."""
    sizes = tuple(shape)
    if len(sizes) != 3 or not all(_positive(size) for size in sizes):
        raise ValueError(f"shape is (channels, height, width) of one example, each >= 1, not {shape!r}")
    if not _positive(classes):
        raise ValueError(f"classes is a whole number >= 1, not {classes!r}")
    return sizes


def _positive(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def initialised(net: Net) -> Net:
    """`net` itself, initialised as above from torch's global generator, layer by layer in the order of its modules."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def drawn_norm_scales(net: Net) -> Net:
    """`net` itself, the scales of its BatchNorms drawn from (0, 1), as OpenLTH (Frankle et al. 2020) begins.

    They come from torch's global generator, layer by layer in the order of its modules.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return net
