"""Markdown tables from groups of rows: columns that say nothing are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paring.cli.human import DASH
from paring.cli.results import Group, Stat

Write = Callable[[float | None], str]
Column = tuple[str, bool, Callable[[Group], str]]

NETWORKS = {"lenet_300_100": "LeNet-300-100", "lenet5_caffe": "LeNet-5-Caffe", "vgg16": "VGG-16"}
NETWORKS |= {"resnet20": "ResNet-20", "resnet50": "ResNet-50", "wrn_16_4": "WRN-16-4", "wrn_28_10": "WRN-28-10"}
NETWORKS |= {
    "conv2": "Conv-2",
    "conv4": "Conv-4",
    "conv6": "Conv-6",
    "conv4_16": "Conv-4 (16)",
    "conv6_16": "Conv-6 (16)",
    "convnet4": "ConvNet4",
    "convnet4_8": "ConvNet4 (8)",
    "convnet8": "ConvNet8",
}
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
NETWORKS |= {"mlp_bn": "MLP with BatchNorm", "conv_bn": "padded conv + BatchNorm", "vit": "ViT"}


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A markdown table; the first `words` columns to the left, the others to the right."""
    rule = [":---" if index < words else "---:" for index in range(len(headers))]
    lines = (headers, rule, *rows)
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def spread(found: Stat | None, write: Write) -> str:
    """Mean ± standard deviation; the mean alone for one value or when all are equal."""
    if found is None:
        return DASH
    mean, std = write(found.mean), write(found.std or 0.0)
    if not found.std:
        return mean
    number, _, unit = mean.partition(" ")
    spread_number, _, spread_unit = std.partition(" ")
    return f"{number} ± {spread_number} {unit}".rstrip() if unit == spread_unit else f"{mean} ± {std}"


def grid(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """A table of the columns in which some group says something."""
    told = [(head, left, [text(group) for group in groups]) for head, left, text in columns]
    told = [column for column in told if any(cell not in ("", DASH) for cell in column[2])]
    words = sum(left for _, left, _ in told)
    told.sort(key=lambda column: not column[1])
    return markdown([head for head, _, _ in told], list(zip(*(cells for _, _, cells in told), strict=True)), words)


def stat_column(head: str, key: str, write: Write) -> Column:
    """A column of the groups' statistic of `key`."""
    return head, False, lambda group: spread(group.stats.get(key), write)


def key_column(head: str, name: str, names: Mapping[str, str] | None = None) -> Column:
    """A column of what the groups agree on under `name`."""

    def text(group: Group) -> str:
        value = group.key.get(name)
        return DASH if value is None else (names or {}).get(str(value), str(value))

    return head, True, text
