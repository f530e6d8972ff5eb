"""How networks of other packages are built for the census: random weights, a small configuration, and what they take.

Nothing is imported before it is built; a package that is not there is said in its row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Wild:
    """One architecture. package: where it comes from. make: the network, and an example: an input, a tuple or a mapping."""

    package: str
    make: Callable[[], Made]


def image(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    """Images, (batch, channels, size, size)."""
    return torch.randn(batch, channels, size, size)


def ids(length: int = 12, words: int = 99) -> Tensor:
    """Words by number, (2, length)."""
    return torch.randint(3, words, (2, length))


def timm(name: str, size: int = 64, **config: Any) -> Wild:
    """A model of timm with ten classes, on images of this size."""

    def make() -> Made:
        library = importlib.import_module("timm")
        net: nn.Module = library.create_model(name, num_classes=10, **config)
        return net, image(size)

    return Wild("timm", make)


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
WORDS: dict[str, Any] = {
    **SMALL,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def hub(
    model: str, inputs: Callable[[], Mapping[str, Any]], *, config: str = "", experts: str = "", **values: Any
) -> Wild:
    """A model of transformers, from a configuration of the same name. experts: how they are computed, if not as usual."""

    def make() -> Made:
        library = importlib.import_module("transformers")
        kind = getattr(library, model)
        made = (getattr(library, config) if config else kind.config_class)(**values)
        net = kind(made)
        if experts:
            net.set_experts_implementation(experts)
        return net, dict(inputs())

    return Wild("transformers", make)


def text() -> Mapping[str, Any]:
    """What a language model takes."""
    return {"input_ids": ids()}


def pairs() -> Mapping[str, Any]:
    """What an encoder and a decoder take."""
    return {"input_ids": ids(), "decoder_input_ids": ids(8)}


def pixels(size: int = 32) -> Callable[[], Mapping[str, Any]]:
    """What a model of images takes."""
    return lambda: {"pixel_values": image(size)}


def sound() -> Mapping[str, Any]:
    """What a model of sound takes."""
    return {"input_values": torch.randn(2, 400)}


def other(package: str, build: Callable[[Any], nn.Module], inputs: Callable[[], Any]) -> Wild:
    """A network of another package: built from its module."""
    return Wild(package, lambda: (build(importlib.import_module(package)), inputs()))


def diffusion() -> Mapping[str, Any]:
    """What a network of a diffusion takes."""
    return {"sample": image(16), "timestep": torch.tensor([3, 7])}
