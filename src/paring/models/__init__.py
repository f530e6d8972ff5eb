"""The networks of the papers, in plain torch: stock layers with readable names. They know no gates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from paring.models.common import drawn_norm_scales
from paring.models.conv import conv2, conv4, conv4_16, conv6, conv6_16
from paring.models.convnet import convnet4, convnet4_8, convnet8
from paring.models.lenet import lenet5_caffe, lenet_300_100, mlp
from paring.models.resnet import resnet20, resnet32, resnet56
from paring.models.vgg import vgg11, vgg13, vgg16, vgg19
from paring.models.wide_resnet import wide_resnet, wrn_16_4, wrn_28_10

_BUILDERS = (
    mlp, lenet_300_100, lenet5_caffe, vgg11, vgg13, vgg16, vgg19, resnet20, resnet32, resnet56,
    wide_resnet, wrn_16_4, wrn_28_10, conv2, conv4, conv6, conv4_16, conv6_16, convnet4,
    convnet4_8, convnet8,
)  # fmt: skip
MODELS: dict[str, Callable[..., nn.Module]] = {builder.__name__: builder for builder in _BUILDERS}

__all__ = [
    "MODELS", "build", "conv2", "conv4", "conv4_16", "conv6", "conv6_16", "convnet4", "convnet4_8", "convnet8",
    "drawn_norm_scales", "lenet5_caffe", "lenet_300_100", "mlp",
    "resnet20", "resnet32", "resnet56", "vgg11", "vgg13", "vgg16", "vgg19", "wide_resnet", "wrn_16_4", "wrn_28_10",
]  # fmt: skip


def build(name: str, *, shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """The network `name` of `MODELS` for examples of `shape` (C, H, W) and so many classes, freshly initialised.

    options: what else its builder takes, such as `widths` of an mlp. Raises ValueError for an unknown name, an option
    that the builder does not take or needs and did not get, and for sizes that it refuses.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    signature = inspect.signature(MODELS[name])
    try:
        signature.bind(shape=shape, classes=classes, **options)
    except TypeError as error:
        raise ValueError(f"cannot build {name}{signature}: {error}") from error
    return MODELS[name](shape=shape, classes=classes, **options)
