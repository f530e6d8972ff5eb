"""Wide ResNet (Zagoruyko and Komodakis 2016, arXiv:1605.07146): few pre-activation blocks with many maps.

Stages of 16k, 32k and 64k maps, (depth - 4) / 6 blocks each. The stride of a stage is on the first convolution of its
first block, as in the paper. The L0 authors (Louizos et al. 2018) put it on the second one, so that the convolutions
they gate run at the larger resolution: their operation counts are not those of the standard network, built here.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from paring.models.common import checked, initialised


class WideBlock(nn.Module):
    """conv2(dropout(relu(bn2(conv1(a))))) + shortcut with a = relu(bn1(x)), with the stride on conv1.

    The shortcut is x, or a 1x1 convolution of a where the width changes, without BatchNorm.
    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        widens = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.bn1(x))
        y: Tensor = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(a)))))
        return y + (x if self.shortcut is None else self.shortcut(a))


def wide_resnet(
    depth: int,
    width: int,
    dropout: float = 0.0,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
) -> nn.Sequential:
    """WRN-depth-width with `dropout` inside its blocks. (N, *shape) -> (N, classes).

    Raises ValueError unless depth is 6 n + 4 with n >= 1, width >= 1 and dropout in [0, 1).
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 10 or depth % 6 != 4:
        raise ValueError(f"the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, ...), not {depth!r}")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"the width factor of a wide ResNet is a whole number >= 1, not {width!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), not {dropout!r}")
    channels, _, _ = checked(shape, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False))
    inputs = 16
    for stage, outputs in enumerate((16 * width, 32 * width, 64 * width), 1):
        blocks = []
        for block in range((depth - 4) // 6):
            blocks.append(WideBlock(inputs, outputs, 2 if stage > 1 and block == 0 else 1, dropout))
            inputs = outputs
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers |= OrderedDict(
        bn1=nn.BatchNorm2d(inputs),
        relu1=nn.ReLU(),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(inputs, classes),
    )
    return initialised(nn.Sequential(layers))


def wrn_28_10(*, dropout: float = 0.0, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """WRN-28-10: 36.5M parameters. The L0 paper uses dropout 0.3. (N, *shape) -> (N, classes)."""
    return wide_resnet(28, 10, dropout, shape=shape, classes=classes)


def wrn_16_4(*, dropout: float = 0.0, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """WRN-16-4: 2.7M parameters. (N, *shape) -> (N, classes)."""
    return wide_resnet(16, 4, dropout, shape=shape, classes=classes)
