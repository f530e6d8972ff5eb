"""What a real network costs: counted from its tensors, not from its gates.

Three sizes are told apart here and in ``paring.codec``: nonzero parameters, dense bytes (what the tensors of a
safetensors file take: parameters and persistent buffers, ties once) and, over there, entropy-coded bytes.
Multiplies and adds follow ``paring.cost.count``: one multiply and one add per weight and output position, one add per
bias and output position; activations, pooling, norms and embedding lookups are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import unwrapped
from paring.graph.wiring import Layer, wiring


@dataclass(frozen=True)
class ModuleCost:
    """What one module owns itself (its children have their own rows) and does for one example.

    ``units``, ``weight``: outputs and weight shape, None where there is no weight. ``bytes``: parameters and persistent
    buffers. A tensor tied to an earlier module counts there. ``macs``, ``adds``: None when unknown.
    """

    name: str
    kind: str
    units: int | None
    weight: tuple[int, ...] | None
    parameters: int
    nonzeros: int
    bytes: int
    macs: int | None
    adds: int | None


@dataclass(frozen=True)
class Measured:
    """A network's table; totals are sums over ``rows``, and None for ``macs`` and ``adds`` without an example.

    ``uncounted`` names modules with a weight matrix whose arithmetic is not known, so that the totals leave it out.
    """

    rows: tuple[ModuleCost, ...]
    traced: bool
    uncounted: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameter entries, ties once."""
        return sum(row.parameters for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Parameter entries that are not exactly zero; buffers do not count."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters and persistent buffers, ties once."""
        return sum(row.bytes for row in self.rows)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one example."""
        return sum(row.macs or 0 for row in self.rows) if self.traced else None

    @property
    def adds(self) -> int | None:
        """Adds for one example, bias adds included."""
        return sum(row.adds or 0 for row in self.rows) if self.traced else None

    @property
    def flops(self) -> int | None:
        """Multiplies plus adds for one example."""
        return None if self.macs is None or self.adds is None else self.macs + self.adds


def measure(net: nn.Module, example: Any = None) -> Measured:
    """Count ``net`` module by module; ``example`` is an input as ``paring.graph.wiring`` takes it (for MACs and adds).

    Raises what ``wiring`` raises when the network cannot be captured.
    """
    net = unwrapped(net)
    layers = {layer.name: layer for layer in wiring(net, example).layers} if example is not None else {}
    seen: set[object] = set()
    rows: list[ModuleCost] = []
    uncounted: list[str] = []
    for name, module in net.named_modules():
        row = _row(name, module, layers.get(name), seen, traced=example is not None)
        if row is not None:
            rows.append(row)
            if row.macs is None and example is not None:
                uncounted.append(name or type(module).__name__)
    return Measured(tuple(rows), example is not None, tuple(uncounted))


def _row(name: str, module: nn.Module, layer: Layer | None, seen: set[object], *, traced: bool) -> ModuleCost | None:
    owned = list(_own_tensors(module))
    if not owned and layer is None:
        return None
    fresh = [tensor for tensor in owned if _first(tensor, seen)]
    parameters = [tensor for tensor in fresh if isinstance(tensor, nn.Parameter)]
    weight = module._parameters.get("weight")
    macs: int | None = None
    adds: int | None = None
    if layer is not None:
        free = layer.kind == "embedding"
        macs = 0 if free else layer.positions * math.prod(layer.weight)
        adds = 0 if free else macs + layer.positions * layer.outputs * layer.bias
    elif traced and all(tensor.dim() < 2 for tensor in owned if isinstance(tensor, nn.Parameter)):
        macs = adds = 0
    return ModuleCost(
        name=name,
        kind=type(module).__name__,
        units=None if weight is None else weight.shape[-1 if isinstance(module, nn.Embedding) else 0],
        weight=None if weight is None else tuple(weight.shape),
        parameters=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        bytes=sum(tensor.numel() * tensor.itemsize for tensor in fresh),
        macs=macs,
        adds=adds,
    )


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The parameters and persistent buffers registered on ``module`` itself."""
    yield from (p for p in module._parameters.values() if p is not None)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield buffer


def _first(tensor: Tensor, seen: set[object]) -> bool:
    """Whether this stretch of memory has not been met before; meets it."""
    where = tensor.untyped_storage().data_ptr()
    key: object = (where, tensor.storage_offset(), tensor.shape, tensor.stride()) if where else id(tensor)
    known = key in seen
    seen.add(key)
    return not known
