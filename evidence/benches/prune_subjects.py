"""Networks and data of `python -m evidence bench prune`: what is trained, on what, and how it is judged.

Each dense network is trained once, by `Subject.dense` epochs of the recipe here, and kept; every tool prunes the same weights.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.benches.bench_nets import Block
from paring.data import Augment, load
from paring.models import resnet20
from paring.models.resnet import resnet
from paring.pruning import Tune

Pair = tuple[Tensor, Tensor]


class Images:
    """Augmented, shuffled batches of images; one pass draws from torch's global generator. The last, smaller one is left out."""

    def __init__(self, x: Tensor, y: Tensor, batch: int, augment: Augment) -> None:
        self.x, self.y, self.batch, self.augment = x, y, batch, augment

    def __len__(self) -> int:
        return len(self.x) // self.batch

    def __iter__(self) -> Iterator[Pair]:
        for rows in torch.randperm(len(self.x))[: len(self) * self.batch].split(self.batch):
            x = self.augment(self.x[rows])
            yield x.contiguous(memory_format=torch.channels_last), self.y[rows]


class Text:
    """Random windows of a text as (characters, next characters), so many that a pass reads each character once."""

    def __init__(self, text: Tensor, batch: int, length: int) -> None:
        self.text, self.batch, self.length = text, batch, length

    def __len__(self) -> int:
        return len(self.text) // (self.batch * self.length)

    def __iter__(self) -> Iterator[Pair]:
        for _ in range(len(self)):
            starts = torch.randint(len(self.text) - self.length - 1, (self.batch, 1))
            rows = starts + torch.arange(self.length + 1)
            window = self.text[rows]
            yield window[:, :-1].contiguous(), window[:, 1:].contiguous()


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU (Howard et al. 2017)."""
    return nn.Sequential(
        OrderedDict(
            depthwise=nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            bn1=nn.BatchNorm2d(inputs),
            relu1=nn.ReLU(),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
            bn2=nn.BatchNorm2d(outputs),
            relu2=nn.ReLU(),
        )
    )


def mobile() -> nn.Sequential:
    """A small MobileNet for CIFAR: a stem of 32 maps and nine separable blocks up to 256. (N, 3, 32, 32) -> (N, 10)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 32, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(32), relu1=nn.ReLU()
    )
    inputs = 32
    shape = ((64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1))
    for number, (outputs, stride) in enumerate(shape, 1):
        layers[f"block{number}"] = separable(inputs, outputs, stride)
        inputs = outputs
    layers |= OrderedDict(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, 10))
    return nn.Sequential(layers)


class Vit28(nn.Module):
    """A vision transformer for 28x28 images in patches of 7: width 64, 4 blocks, 4 heads. (N, 1, 28, 28) -> (N, 10)."""

    def __init__(self, dim: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 7, 7)
        self.position = nn.Embedding(16, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> (N, 10)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position.weight
        out: Tensor = self.fc(self.norm(self.blocks(x)).mean(1))
        return out


class Gpt(nn.Module):
    """A GPT over characters: width 128, 5 blocks, 4 heads, about a million parameters. (N, T) -> (N, T, characters)."""

    def __init__(self, characters: int = 65, length: int = 128, dim: int = 128, heads: int = 4, depth: int = 5) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(characters, dim), nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, characters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) -> (N, T, characters)."""
        x = self.embed(x) + self.position.weight[: x.shape[1]]
        out: Tensor = self.fc(self.norm(self.blocks(x)))
        return out


def classify(net: nn.Module, batch: Pair) -> Tensor:
    """Cross-entropy of (N, classes) or (N, T, classes)."""
    x, y = batch
    out = net(x)
    return F.cross_entropy(out.flatten(0, -2).float(), y.flatten())


@dataclass(frozen=True)
class Parts:
    """Batches for training, and fixed batches for validation and test."""

    train: Images | Text
    validation: list[Pair]
    test: list[Pair]


@cache
def images(name: str, crop: int, flip: bool, batch: int, most: int | None = None) -> Parts:
    """A data set of images with 5,000 examples for validation, and at most so many for training."""
    data = load(name, validation=5_000)

    def fixed(x: Tensor, y: Tensor) -> list[Pair]:
        turned = x.contiguous(memory_format=torch.channels_last)
        return list(zip(turned.split(500), y.split(500), strict=True))

    train = Images(data.train.x[:most], data.train.y[:most], batch, Augment(crop=crop, flip=flip))
    return Parts(train, fixed(data.validation.x, data.validation.y), fixed(data.test.x, data.test.y))


@cache
def characters(batch: int, length: int) -> Parts:
    """The text of tinyshakespeare: 90 % for training, 5 % for validation, 5 % for the test."""
    path = Path(os.environ.get("PARING_DATA", ".")) / "tinyshakespeare" / "input.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: put tinyshakespeare's input.txt (Karpathy's char-rnn) into a folder tinyshakespeare, and name "
            "the folder above it by PARING_DATA"
        )
    text = path.read_text(encoding="utf-8")
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[character] for character in text])
    first, second = int(len(codes) * 0.9), int(len(codes) * 0.95)

    def fixed(part: Tensor) -> list[Pair]:
        rows = (len(part) - 1) // length
        x, y = part[: rows * length].view(rows, length), part[1 : rows * length + 1].view(rows, length)
        return list(zip(x.split(64), y.split(64), strict=True))

    return Parts(Text(codes[:first], batch, length), fixed(codes[first:second]), fixed(codes[second:]))


@dataclass(frozen=True)
class Subject:
    """A network to prune.

    Attributes:
        name, data: as in the rows.
        build: the network, freshly initialised.
        parts: its data.
        dense: how it is trained.
        tune: how it is fine-tuned.
        percent: whether `error` is in percent; else it is the mean loss.
        budgets: shares of the multiply-accumulates that are asked for.
    """

    name: str
    data: str
    build: Callable[[], nn.Module]
    parts: Callable[[], Parts]
    dense: Tune
    tune: Tune
    percent: bool = True
    budgets: tuple[float, ...] = (0.5, 0.25)

    @torch.no_grad()
    def error(self, net: nn.Module, part: list[Pair]) -> float:
        """Wrong answers in percent, or the mean loss, in eval mode."""
        net.eval()
        wrong = total = 0.0
        for x, y in part:
            out = net(x).float()
            if self.percent:
                wrong += float((out.argmax(-1) != y).sum())
            else:
                wrong += float(F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="sum"))
            total += y.numel()
        return wrong / total * (100 if self.percent else 1)

    def example(self) -> Tensor:
        """Two inputs."""
        return self.parts().validation[0][0][:2].contiguous()


def sgd(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """SGD with Nesterov momentum and weight decay, as CIFAR networks are trained."""
    return lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def adamw(rate: float, decay: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """AdamW."""
    return lambda p: torch.optim.AdamW(p, lr=rate, weight_decay=decay)


def _cnn(
    name: str, build: Callable[[], nn.Module], parts: Callable[[], Parts], dense: Tune, tune: Tune, data: str
) -> Subject:
    def made() -> nn.Module:
        net: nn.Module = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    return Subject(name, data, made, parts, dense, tune)


def resnet8() -> nn.Sequential:
    """A ResNet of three blocks for Fashion-MNIST: 16, 32 and 64 maps, 77,754 parameters. (N, 1, 28, 28) -> (N, 10)."""
    return resnet(8, shape=(1, 28, 28), classes=10)


def _cifar() -> Parts:
    return images("cifar10", 4, True, 128)


def _clothes() -> Parts:
    return images("fashion_mnist", 2, True, 128, 20_000)


_LONG = Tune(60, sgd(0.1), warmup=0.05, autocast=torch.bfloat16)
_SHORT = Tune(10, sgd(0.05), autocast=torch.bfloat16)
SUBJECTS = {
    subject.name: subject
    for subject in (
        _cnn("resnet20", resnet20, _cifar, _LONG, _SHORT, "cifar10"),
        _cnn("mobile", mobile, _cifar, _LONG, _SHORT, "cifar10"),
        _cnn("resnet8", resnet8, _clothes, Tune(12, sgd(0.1), warmup=0.05), Tune(2, sgd(0.05)), "fashion_mnist"),
        Subject(
            "vit",
            "fashion_mnist",
            Vit28,
            _clothes,
            Tune(20, adamw(2e-3, 0.05), clip=1.0),
            Tune(2, adamw(1e-3, 0.05), clip=1.0),
            budgets=(0.5, 0.35),
        ),
        Subject(
            "gpt",
            "tinyshakespeare",
            partial(Gpt, length=64, dim=64, depth=4),
            lambda: characters(32, 64),
            Tune(4, adamw(3e-3, 0.1), clip=1.0),
            Tune(1, adamw(2e-3, 0.1), clip=1.0),
            percent=False,
            budgets=(0.5, 0.35),
        ),
        Subject(
            "gpt-1m",
            "tinyshakespeare",
            Gpt,
            lambda: characters(32, 128),
            Tune(12, adamw(2e-3, 0.1), clip=1.0),
            Tune(3, adamw(1e-3, 0.1), clip=1.0),
            percent=False,
            budgets=(0.5, 0.35),
        ),
    )
}
