"""ResNet for CIFAR (He et al. 2015, arXiv:1512.03385, section 4.2): a stem, stages of 16, 32 and 64 maps, a classifier.

Where a stage changes the width, the shortcut is a 1x1 convolution with stride 2 and BatchNorm (their option B). The
paper's CIFAR networks use option A (subsample and pad with zero maps), which has no parameters: 2,752 fewer.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from paring.models.common import checked, initialised


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), with the stride on conv1.

    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn=nn.BatchNorm2d(outputs))
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def resnet(depth: int, *, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """A ResNet of 6n + 2 layers, n blocks a stage. (N, *shape) -> (N, classes)."""
    channels, _, _ = checked(shape, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu1=nn.ReLU()
    )
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64), 1):
        blocks = []
        for block in range((depth - 2) // 6):
            blocks.append(BasicBlock(inputs, outputs, 2 if stage > 1 and block == 0 else 1))
            inputs = outputs
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers |= OrderedDict(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(64, classes))
    return initialised(nn.Sequential(layers))


def resnet20(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """ResNet-20: 3 blocks a stage, 272,474 parameters on CIFAR-10. (N, *shape) -> (N, classes)."""
    return resnet(20, shape=shape, classes=classes)


def resnet32(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """ResNet-32: 5 blocks a stage, 0.47M parameters. (N, *shape) -> (N, classes)."""
    return resnet(32, shape=shape, classes=classes)


def resnet56(*, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """ResNet-56: 9 blocks a stage, 0.86M parameters. (N, *shape) -> (N, classes)."""
    return resnet(56, shape=shape, classes=classes)
