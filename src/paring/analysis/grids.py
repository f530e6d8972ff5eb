"""Units that lie along several dimensions, such as heads and head dimensions, and what must hold for them to shrink.

A tensor that has lost units must still be a box. So whole slices go along the outer dimension (a head), and inside the
slices that live any units may go as long as all of them keep the same number. `restore` gives units back until that
holds everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from paring.analysis.labels import varying


@dataclass(frozen=True)
class Grid:
    """Unit ids of one tensor, a dimension for each that the units lie along, the outermost first.

    Some slice lives, and living slices of one dimension keep the same number of living slices of the next. regular:
    the same ones (the dimensions were merged in another order).
    """

    labels: Tensor
    regular: bool = False


@dataclass(frozen=True)
class Layout:
    """The shape of one tensor, the dimensions that units lie along (outermost first), and a `Grid` of the ids there."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    box: Tensor

    def kept(self, kept: Tensor) -> tuple[int, ...]:
        """The shape once the units that are not kept have left."""
        sizes = list(self.shape)
        alive = kept[self.box]
        for d in reversed(self.dims):
            sizes[d] = int(alive.sum(-1).max())
            alive = alive.any(-1)
        return tuple(sizes)

    def before(self, dim: int, stop: int, kept: Tensor) -> int:
        """How many of the first `stop` slices along `dim` stay."""
        if dim not in self.dims:
            return stop
        at = self.dims.index(dim)
        alive = kept[self.box].flatten(at + 1).any(-1) if at + 1 < len(self.dims) else kept[self.box]
        return int(alive[..., :stop].sum(-1).max())


@dataclass(frozen=True)
class SliceTie:
    """Tensors that meet slice by slice: parts (n, m) hold the ids in each of the n slices; the same slices live in all."""

    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class Contraction:
    """A product of two activations as a reader: row i needs columns (n, m) of ids that are used and not free.

    units (n,): what the rows are needed for, -1 always. constants (n, m): the constant in the column, NaN none.
    """

    node: fx.Node
    units: Tensor
    columns: Tensor
    constants: Tensor
    used: Tensor
    free: Tensor


def reach(labels: Tensor, dim: int) -> int:
    """How far apart the ids along a dimension are."""
    return int((labels.amax(dim) - labels.amin(dim)).max())


def grid_dims(labels: Tensor) -> list[int]:
    """The dimensions that units lie along, the outermost first: ids are consecutive along the innermost."""
    found = varying(labels)
    for d in range(labels.dim()):
        labels = labels if d in found else labels.narrow(d, 0, min(1, labels.shape[d]))
    return sorted(found, key=lambda d: -reach(labels, d))


def rectangle(labels: Tensor, dims: list[int]) -> Tensor:
    """Labels along these dimensions only, in this order."""
    for d in range(labels.dim()):
        if d not in dims:
            labels = labels.narrow(d, 0, 1)
    rest = [d for d in range(labels.dim()) if d not in dims]
    return labels.permute(*dims, *rest).reshape([labels.shape[d] for d in dims]).clone()


def slices(labels: Tensor, dims: list[int]) -> Tensor:
    """The ids in each slice along these dimensions, (slices, ids in a slice)."""
    rest = [d for d in grid_dims(labels) if d not in dims]
    box = rectangle(labels, [*dims, *rest])
    return box.flatten(0, len(dims) - 1).reshape(box.shape[: len(dims)].numel(), -1)


def layout(labels: Tensor) -> Layout:
    """The layout of a label tensor (ids as the producers gave them)."""
    dims = grid_dims(labels) if labels.numel() else []
    return Layout(tuple(labels.shape), tuple(dims), rectangle(labels, dims) if labels.numel() else labels.flatten())


def restore(grids: list[Grid], slice_ties: list[SliceTie], kept: Tensor, read: Tensor) -> Tensor:
    """Ids that have to stay for all tensors to be boxes again (sorted); `read`: ids somebody reads, chosen last."""
    wanted = [_missing(grid, kept, read) for grid in grids]
    for tie in slice_ties:
        alive = [kept[part].any(1) for part in tie.parts]
        some = torch.stack(alive).any(0)
        for part, living in zip(tie.parts, alive, strict=True):
            absent = part[some & ~living]
            wanted.append(_choose(absent, torch.ones(len(absent), dtype=torch.int64), read))
    found = torch.cat(wanted) if wanted else torch.zeros(0, dtype=torch.int64)
    more: Tensor = torch.unique(found[found >= 0])
    return more


def _missing(grid: Grid, kept: Tensor, read: Tensor) -> Tensor:
    labels = grid.labels
    alive = kept[labels]
    if grid.regular:
        box = torch.ones_like(alive)
        for d in range(labels.dim()):
            others = [o for o in range(labels.dim()) if o != d]
            box &= alive.any(others, keepdim=True) if others else alive
        found: Tensor = labels[box & ~alive] if bool(alive.any()) else labels.flatten()[:1]
        return found
    while True:
        rows, ids = alive.reshape(-1, alive.shape[-1]), labels.reshape(-1, labels.shape[-1])
        counts = rows.sum(1)
        short = (counts < counts.max()) & (counts > 0)
        if alive.dim() > 1 and bool(short.any()):
            absent = ids[short].masked_fill(rows[short], -1)
            return _choose(absent, counts.max() - counts[short], read)
        if alive.dim() <= 1:
            return _choose(ids.reshape(1, -1), torch.tensor([0 if bool(alive.any()) else 1]), read)
        alive, labels = alive.any(-1), labels[..., 0]


def _choose(rows: Tensor, count: Tensor, read: Tensor) -> Tensor:
    """So many ids of each row, those first that nobody reads; -1 is none."""
    chosen = [torch.zeros(0, dtype=torch.int64)]
    for row, n in zip(rows, count.tolist(), strict=True):
        there = row[row >= 0]
        chosen.append(there[torch.argsort(read[there].to(torch.int8), stable=True)][:n])
    return torch.cat(chosen)
