"""Comparisons for tests: the same function, the same state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import SelectLinear
from paring.core.zeros import Zeros
from paring.hard.swap import UNITS


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Largest absolute difference of two networks' outputs in eval mode; their modes are put back."""
    modes = a.training, b.training
    found = float((a.eval()(x) - b.eval()(x)).abs().max())
    a.train(modes[0])
    b.train(modes[1])
    return found


def same_state(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two state dicts are equal, bit for bit."""
    return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        return isinstance(y, Tensor) and x.dtype == y.dtype and torch.equal(x, y)
    if isinstance(x, Mapping):
        return isinstance(y, Mapping) and same_state(x, y)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(_same(i, j) for i, j in zip(x, y, strict=True))
    return bool(x == y)


def is_stock(net: nn.Module) -> bool:
    """Whether every leaf is a stock layer (or a `SelectLinear`, where inputs were cut, zeros, or a hard unit)."""
    leaves = [m for m in net.modules() if not any(True for _ in m.children())]
    return all(type(m) in (SelectLinear, Zeros, *UNITS) or type(m).__module__.startswith("torch.nn.") for m in leaves)
