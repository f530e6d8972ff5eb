"""What a real network costs: counted from its tensors, not from its gates.

Three sizes are told apart here and in ``paring.compression``: nonzero parameters, dense bytes (what the tensors of a
safetensors file take: parameters and persistent buffers, ties once) and, over there, entropy-coded bytes.
Multiplies and adds follow ``paring.cost.count`` and ``paring.analysis.work``: one multiply and one add per weight and
output position, and per combination in a product of activations (attention), one add per bias and output position;
activations, pooling, norms and embedding lookups are free. What no layer of its own does counts in the module that it
was traced in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.analysis.wiring import Layer, Wiring, wiring
from paring.core import kind_of, unwrapped


@dataclass(frozen=True)
class ModuleCost:
    """What one module owns itself (its children have their own rows) and does for one example.

    ``units``, ``weight``: outputs and weight shape, None where there is no weight. ``bytes``: parameters and persistent
    buffers. A tensor tied to an earlier module counts there. ``macs``, ``adds``: None without an example.
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

    ``uncounted`` names modules that compute with an operation whose arithmetic is not known: the totals leave it out.
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
    """Count ``net`` module by module; ``example`` is an input as ``paring.analysis.wiring`` takes it (for MACs and adds).

    Raises what ``wiring`` raises when the network cannot be captured.
    """
    net = unwrapped(net)
    found = wiring(net, example) if example is not None else None
    work = _work(net, found) if found is not None else None
    seen: set[object] = set()
    rows = [_row(name, module, work, seen) for name, module in net.named_modules()]
    uncounted = () if found is None else tuple(_unknown(net, found))
    return Measured(tuple(row for row in rows if row is not None), found is not None, uncounted)


def _work(net: nn.Module, found: Wiring) -> dict[str, tuple[int, int]]:
    """MACs and adds of each module itself, by the first of its names."""
    first = _first_names(net)
    parts = [(layer.name, *_layer_work(layer)) for layer in found.layers]
    parts += [(p.module, len(p.left) * p.macs, len(p.left) * p.adds) for p in found.products]
    work: dict[str, tuple[int, int]] = {}
    for path, macs, adds in parts:
        home = _home(first, path)
        before = work.get(home, (0, 0))
        work[home] = (before[0] + macs, before[1] + adds)
    return work


def _layer_work(layer: Layer) -> tuple[int, int]:
    macs = int(layer.positions * math.prod(layer.weight) * layer.multiplies)
    return macs, macs + int(layer.biased * layer.outputs * layer.bias * layer.multiplies)


def _first_names(net: nn.Module) -> dict[str, str]:
    """The first name of every module, by all of its names."""
    first = {module: name for name, module in net.named_modules()}
    return {name: first[module] for name, module in net.named_modules(remove_duplicate=False)}


def _home(first: dict[str, str], path: str) -> str:
    """The first name of the module at ``path``, or of the one that holds a projection called so."""
    while path not in first:
        path = path.rpartition(".")[0]
    return first[path]


def _unknown(net: nn.Module, found: Wiring) -> Iterator[str]:
    """Modules with arithmetic that is not known, each with the operation."""
    first = _first_names(net)
    for path, operation in found.uncounted.items():
        yield f"{_home(first, path) or type(net).__name__} ({operation})"


def _row(name: str, module: nn.Module, work: dict[str, tuple[int, int]] | None, seen: set[object]) -> ModuleCost | None:
    owned = list(_own_tensors(module))
    if not owned and (work is None or name not in work):
        return None
    fresh = [tensor for tensor in owned if _first(tensor, seen)]
    parameters = [tensor for tensor in fresh if isinstance(tensor, nn.Parameter)]
    weight, kind = module._parameters.get("weight"), kind_of(module)
    macs, adds = (None, None) if work is None else work.get(name, (0, 0))
    return ModuleCost(
        name=name,
        kind=type(module).__name__,
        units=None if weight is None else len(weight) if kind is None else kind.shape(module, "units")[0],
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
