"""Structures: which entries are kept or dropped together, and the masks that follow from scores.

A structure reduces the scores of a weight to the scores of its pieces; an allocation says how many pieces each layer
keeps; the highest ones stay. `N:M` is different: every group of m inputs keeps its n best, whatever the allocation, and on
the way to its density as many more as that asks for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paring.select.allocation import Allocation
from paring.select.highest import top

_CLOSE = 5e-3  # of a density asked for to n/m: powers of a rate that was rounded


class Structure(ABC):
    """Splits weights (outputs, inputs, ...) into pieces."""

    @abstractmethod
    def pieces(self, score: Tensor) -> Tensor:
        """Scores of the pieces of a weight, from the scores of its entries; any shape."""

    @abstractmethod
    def spread(self, mask: Tensor, shape: torch.Size) -> Tensor:
        """A mask over pieces as a mask over entries."""

    @property
    def only(self) -> float | None:
        """The one density that it ends with; None for any."""
        return None

    def check(self, what: str, density: float) -> None:
        """Refuse a final density that this structure cannot have.

        Args:
            what: asks for it, for the message: "GMP(density=0.1)".
            density: in the end.

        Raises:
            ValueError: it cannot.
        """
        if self.only is not None and abs(density - self.only) > _CLOSE:
            raise ValueError(
                f"{what} with structure {self}: that keeps {self.only:.4g} of the weights and nothing else, not "
                f"{density:.4g}; ask for this density (of IMP by its last pruning), or leave the structure out"
            )


@dataclass(frozen=True)
class Weights(Structure):
    """Every weight on its own."""

    def pieces(self, score: Tensor) -> Tensor:
        return score

    def spread(self, mask: Tensor, shape: torch.Size) -> Tensor:
        return mask


@dataclass(frozen=True)
class Units(Structure):
    """All weights of an output unit together; its score is their sum."""

    def pieces(self, score: Tensor) -> Tensor:
        return score.flatten(1).sum(1)

    def spread(self, mask: Tensor, shape: torch.Size) -> Tensor:
        return mask.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


@dataclass(frozen=True)
class Blocks(Structure):
    """Blocks of `outputs` x `inputs` weights, all kernel positions included; its score is their sum.

    Sizes that do not divide leave smaller blocks at the edge.

    Args:
        outputs: rows of a block.
        inputs: columns of a block.
    """

    outputs: int = 4
    inputs: int = 4

    def __post_init__(self) -> None:
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"Blocks({self.outputs}, {self.inputs}): sizes must be at least 1")

    def pieces(self, score: Tensor) -> Tensor:
        flat = score.flatten(2).sum(2) if score.dim() > 2 else score
        rows, columns = flat.shape
        down, right = -rows % self.outputs, -columns % self.inputs
        padded = torch.nn.functional.pad(flat, (0, right, 0, down))
        grid = padded.view(-(-rows // self.outputs), self.outputs, -(-columns // self.inputs), self.inputs)
        return grid.sum((1, 3))

    def spread(self, mask: Tensor, shape: torch.Size) -> Tensor:
        rows = mask.repeat_interleave(self.outputs, 0)[: shape[0]]
        both = rows.repeat_interleave(self.inputs, 1)[:, : shape[1]]
        return both.view(*both.shape, *[1] * (len(shape) - 2)).expand(shape).clone()


@dataclass(frozen=True)
class NM(Structure):
    """In every group of m consecutive inputs of a unit (per kernel position) the n best stay ("2:4").

    The density is n/m then, and what is asked of a method must say so. Before it has fallen to that, a group keeps as many
    as it asks for, rounded up. A last group that is shorter keeps the same share, rounded up.

    Args:
        n: kept in each group.
        m: size of a group.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"NM({self.n}, {self.m}): keep at least 1 and at most m of each group")

    def pieces(self, score: Tensor) -> Tensor:
        return score

    def spread(self, mask: Tensor, shape: torch.Size) -> Tensor:
        return mask

    @property
    def only(self) -> float:
        return self.n / self.m

    def best(self, score: Tensor, density: float = 0.0) -> Tensor:
        """The mask itself, before the density has fallen to n/m with more in each group."""
        moved = score.detach().movedim(1, -1)
        mask = torch.zeros_like(moved, dtype=torch.bool)
        for start in range(0, moved.shape[-1], self.m):
            group = moved[..., start : start + self.m]
            size = group.shape[-1]
            keep = -(-self.n * size // self.m) if density <= self.only + _CLOSE else math.ceil(density * size - 1e-9)
            order = group.argsort(dim=-1, descending=True, stable=True)[..., :keep]
            mask[..., start : start + self.m].scatter_(-1, order, True)
        return mask.movedim(-1, 1).contiguous()


def masks(
    scores: Mapping[str, Tensor], density: float, allocation: Allocation, structure: Structure
) -> dict[str, Tensor]:
    """What stays: one boolean mask per layer, of the shape of its scores.

    Args:
        scores: by layer name, each of its weight's shape; higher is kept first.
        density: share of the pieces that stays, in [0, 1]; of `NM` never less than n/m.
        allocation: how the layers share it.
        structure: what is kept or dropped together.
    """
    if isinstance(structure, NM):
        return {name: structure.best(score, density) for name, score in scores.items()}
    pieces = {name: structure.pieces(score) for name, score in scores.items()}
    counts = allocation.counts(pieces, density, {name: score.shape for name, score in scores.items()})
    return {name: structure.spread(top(piece, counts[name]), scores[name].shape) for name, piece in pieces.items()}
