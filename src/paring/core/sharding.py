"""Which parts of a network are spread over processes, by `fully_shard` or by FullyShardedDataParallel.

The packages of torch that shard are slow to import; they are loaded wherever they were used, and only looked up here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(net: nn.Module) -> bool:
    """Whether a module of `net` was sharded by `fully_shard` or is a FullyShardedDataParallel, or a parameter is a `DTensor`."""
    modules = list(net.modules())
    return any(True for _ in sharded_modules(modules)) or any(True for _ in sharded_places(modules)) or is_flat(net)


def is_flat(net: nn.Module) -> bool:
    """Whether a module of `net` is a FullyShardedDataParallel, which keeps parameters as pieces of a flat one."""
    kind = shard_class("FullyShardedDataParallel")
    return kind is not None and any(isinstance(module, kind) for module in net.modules())


def shard_class(name: str) -> Any:
    """A class of `torch.distributed.fsdp`, such as the one that `fully_shard` adds; None while that is not loaded."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, None)


def sharded_modules(modules: Iterable[nn.Module]) -> Iterator[FSDPModule]:
    """Modules that `fully_shard` was applied to."""
    kind = shard_class("FSDPModule")
    if kind is not None:
        yield from (module for module in modules if isinstance(module, kind))


def sharded_places(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, DTensor]]:
    """Where sharded parameters are: (module, name there, parameter)."""
    kind: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    for module in modules if kind is not None else ():
        for leaf, held in module._parameters.items():
            if isinstance(held, kind):
                yield module, leaf, held
