"""Networks of the benches that the package has no builder for: MLP with BatchNorm, two padded convolutions, ResNet-50, ViT."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


def mlp_bn() -> nn.Sequential:
    """784-300-100-10 with BatchNorm after both hidden layers. (N, 1, 28, 28) -> (N, 10)."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            bn1=nn.BatchNorm1d(300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            bn2=nn.BatchNorm1d(100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def conv_bn() -> nn.Sequential:
    """Three padded 3x3 convolutions of 32, 64 and 64 maps, each with BatchNorm. (N, 3, 32, 32) -> (N, 10)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for index, (outputs, stride) in enumerate(((32, 1), (64, 2), (64, 2)), 1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
        inputs = outputs
    layers |= OrderedDict(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, 10))
    return nn.Sequential(layers)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with BatchNorm, and a shortcut. He et al. 2015, as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn=nn.BatchNorm2d(outputs))
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


def resnet50() -> nn.Sequential:
    """ResNet-50 for ImageNet, 25,557,032 parameters. (N, 3, H, W) -> (N, 1000)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, 2, padding=1),
    )
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        made = []
        for block in range(blocks):
            made.append(Bottleneck(inputs, width, 2 if stage > 1 and block == 0 else 1))
            inputs = 4 * width
        layers[f"stage{stage}"] = nn.Sequential(*made)
    layers |= OrderedDict(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, 1000))
    return nn.Sequential(layers)


class Attention(nn.Module):
    """Self-attention with separate query, key and value layers; `heads` heads of `head` numbers. (N, T, D) -> (N, T, D).

    causal: each position looks at itself and those before.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.head, self.causal = heads, dim // heads, causal
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, self.heads, self.head).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (
            F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            .transpose(1, 2)
            .reshape(n, t, self.heads * self.head)
        )
        out: Tensor = self.proj(y)
        return out


class Block(nn.Module):
    """A pre-norm transformer block with a GELU layer of four times the width."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class Vit(nn.Module):
    """A vision transformer that averages its tokens (Dosovitskiy et al. 2020). (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, dim: int = 192, heads: int = 6, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.position = nn.Embedding(64, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position.weight
        out: Tensor = self.fc(self.norm(self.blocks(x)).mean(1))
        return out
