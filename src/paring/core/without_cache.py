"""Networks of transformers without the caches that they return beside their tensors, while somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def caching(net: nn.Module) -> list[Any]:
    """The configurations in a network that ask for a cache; its parts may have configurations of their own."""
    found = {id(config): config for part in net.modules() if (config := getattr(part, "config", None)) is not None}
    return [config for config in found.values() if getattr(config, "use_cache", False) is True]


@contextmanager
def without_cache(net: nn.Module) -> Iterator[None]:
    """Meanwhile the network returns no cache."""
    found = caching(net)
    _set(found, False)
    try:
        yield
    finally:
        _set(found, True)


def caching_as(net: nn.Module, other: nn.Module) -> nn.Module:
    """`net`, a copy of `other` that was made without caches, with those that `other` has."""
    asks = {id(config) for config in caching(other)}
    pairs = ((getattr(part, "config", None), name) for name, part in other.named_modules())
    names = {name for config, name in pairs if id(config) in asks}
    _set([part.config for name, part in net.named_modules() if name in names and hasattr(part, "config")], True)
    return net


def _set(configs: list[Any], value: bool) -> None:
    for config in configs:
        config.use_cache = value
