"""Second moments of what weights read: X^T X over calibration batches, for every weight that a network multiplies by.

The operations of torch that a weight takes part in are watched below its modules (matrix products, convolutions), so that
packed attention, recurrent layers, and layers of anyone's own count like plain ones. A weight that several operations read
has the sum. Only products are counted: lookups in a table have no input.

The columns of a weight are what one output sums over; long ones are cut into blocks of at most `WIDEST`, and moments between
blocks are left out. Of very many rows of X an even sample is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

WIDEST = 1024
"""Columns whose moments are kept together."""
ROWS = 16
"""Rows of X for each column, at most, from one operation."""


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as matrices: rows, one for each output, of the columns that it sums over.

    Args:
        shape: of the weight.
        first: whether the sum goes over the weight's first dimension, in place of all others.
        groups: parts of the rows that read inputs of their own.
    """

    shape: tuple[int, ...]
    first: bool = False
    groups: int = 1

    @property
    def columns(self) -> int:
        """Terms of the sum of one output."""
        return self.shape[0] // self.groups if self.first else math.prod(self.shape[1:])

    @property
    def blocks(self) -> int:
        """Blocks of columns; the fewest of equal length."""
        least = -(-self.columns // WIDEST)
        return next(n for n in range(max(1, least), self.columns + 1) if self.columns % n == 0)

    def matrices(self, weight: Tensor) -> Tensor:
        """(groups * blocks, rows, columns of a block) of something of the weight's shape."""
        turned = (self.columns, -1) if self.first else (-1, self.columns)
        rows = weight.reshape(self.groups, *turned)
        rows = rows.transpose(1, 2) if self.first else rows
        parts = rows.unflatten(2, (self.blocks, -1)).transpose(1, 2)
        found: Tensor = parts.flatten(0, 1).contiguous()
        return found

    def weight(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        parts = matrices.unflatten(0, (self.groups, self.blocks)).transpose(1, 2)
        rows: Tensor = parts.flatten(2)
        return (rows.transpose(1, 2) if self.first else rows).reshape(self.shape)


@dataclass
class Moments:
    """What was seen of one weight.

    Attributes:
        layout: of the first operation that read it.
        total: (groups * blocks, columns of a block, columns of a block), the sum of X^T X.
    """

    layout: Layout
    total: Tensor

    def add(self, rows: Tensor) -> None:
        """Count rows of X, (n, groups * columns)."""
        limit = ROWS * self.total.shape[1]
        scale = 1.0
        if len(rows) > limit:
            chosen = torch.linspace(0, len(rows) - 1, limit, dtype=torch.float64).long()
            scale, rows = len(rows) / limit, rows[chosen]
        parts = rows.to(self.total.dtype).reshape(len(rows), len(self.total), -1).transpose(0, 1)
        self.total.add_(parts.transpose(1, 2) @ parts, alpha=scale)


@dataclass
class _Watch(TorchDispatchMode):
    """Notes what is multiplied by these weights."""

    weights: dict[str, nn.Parameter]
    found: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {w.untyped_storage().data_ptr(): name for name, w in self.weights.items() if w.is_contiguous()}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        note = _NOTES.get(func)
        if note is not None:
            note(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def name(self, value: Tensor) -> str | None:
        """The weight that this is a view of."""
        return self.names.get(value.untyped_storage().data_ptr())

    def product(self, left: Tensor, right: Tensor) -> None:
        """A matrix product; either side may be the weight."""
        self._right(left, right)
        self._right(right.t(), left.t())

    def _right(self, x: Tensor, view: Tensor) -> None:
        name = self.name(view)
        if name is None or not x.numel():
            return
        weight = self.weights[name]
        width = weight.numel() // len(weight)
        if view.shape[0] == width and view.stride() == (1, width):
            self.seen(name, Layout(tuple(weight.shape)), x)
        elif view.shape == (len(weight), width) and view.stride() == (width, 1):
            self.seen(name, Layout(tuple(weight.shape), first=True), x)

    def seen(self, name: str, layout: Layout, rows: Tensor) -> None:
        """Count rows of X for a weight; an operation that reads it in another way than the first did is left out."""
        if name not in self.found:
            width, weight = layout.columns // layout.blocks, self.weights[name]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            total = torch.zeros(layout.groups * layout.blocks, width, width, dtype=dtype, device=weight.device)
            self.found[name] = Moments(layout, total)
        if self.found[name].layout == layout:
            self.found[name].add(rows)


def _mm(watch: _Watch, left: Tensor, right: Tensor, **_: Any) -> None:
    watch.product(left, right)


def _addmm(watch: _Watch, _bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> None:
    watch.product(left, right)


def _bmm(watch: _Watch, left: Tensor, right: Tensor, **_: Any) -> None:
    if right.shape[0] == 1 or right.stride(0) == 0:
        watch.product(left.flatten(0, 1), right[0])


def _convolution(
    watch: _Watch,
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
) -> None:
    name = watch.name(weight)
    if name is None or weight.shape != watch.weights[name].shape or not x.numel():
        return
    layout = Layout(tuple(weight.shape), transposed, groups)
    if transposed:
        watch.seen(name, layout, x.movedim(1, -1).flatten(0, -2))
        return
    patches = F.pad(x, [width for one in reversed(padding) for width in (one, one)])
    for dim, (size, step, gap) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True)):
        patches = patches.unfold(2 + dim, (size - 1) * gap + 1, step)[..., ::gap]
    spatial = len(stride)
    patches = patches.movedim(1, spatial + 1)  # (n, *places, channels, *kernel)
    places = patches.shape[: spatial + 1]
    limit, count = ROWS * layout.columns // layout.blocks, math.prod(places)
    if count > limit:  # before the copies of overlapping patches are made
        index = torch.linspace(0, count - 1, limit, dtype=torch.float64, device=x.device).long()
        chosen = torch.unravel_index(index, places)
        watch.seen(name, layout, patches[chosen].flatten(1) * math.sqrt(count / limit))
    else:
        watch.seen(name, layout, patches.reshape(count, -1))


_NOTES: dict[Any, Callable[..., None]] = {
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.addmm.default: _addmm,
    torch.ops.aten.bmm.default: _bmm,
    torch.ops.aten.convolution.default: _convolution,
}


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Without operations that do several layers at once: recurrent ones of oneDNN, and the fused encoder layer."""
    fast, whole = torch.backends.mha.get_fastpath_enabled(), bool(torch.backends.mkldnn.enabled)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=whole)
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def second_moments(weights: dict[str, nn.Parameter], run: Callable[[], object]) -> dict[str, Moments]:
    """The second moments of what weights read, while something runs.

    Args:
        weights: by name.
        run: calls the network on calibration data.

    Returns:
        By name; without those that nothing was multiplied by, and those that take part in other ways than a matrix product or a convolution.
    """
    with _plain_operations(), _Watch(weights) as watch:
        run()
    found: dict[str, Moments] = watch.found
    return found
