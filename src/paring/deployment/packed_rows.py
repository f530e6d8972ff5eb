"""A weight without its zeros: rows of values and of the numbers of their columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SHORT = 1 << 16  # columns that two bytes can number


@dataclass(frozen=True)
class PackedRows:
    """Row o has the values[starts[o]:starts[o + 1]], in the columns taps[...]; 6 bytes per weight, 8 beyond 65,536 columns.

    Attributes:
        shape: of the weight; its first dimension are the rows, the others together the columns.
        starts: (rows + 1,) int64.
        taps: uint16 or uint32.
        values: float32.
        bias: (rows,) float32.
    """

    shape: tuple[int, ...]
    starts: Any
    taps: Any
    values: Any
    bias: Any

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, groups: int = 1) -> PackedRows:
        """Pack a weight (outputs, inputs / groups, ...); columns are numbered over the inputs of all groups."""
        matrix = weight.detach().flatten(1).numpy()
        rows, columns = np.nonzero(matrix)
        values = matrix[rows, columns]
        starts = np.zeros(len(matrix) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(matrix)), out=starts[1:])
        taps = columns + rows // (len(matrix) // groups) * matrix.shape[1]
        short = matrix.shape[1] * groups <= _SHORT
        added = np.zeros(len(matrix), dtype=np.float32) if bias is None else bias.detach().numpy().copy()
        return cls(tuple(weight.shape), starts, taps.astype(np.uint16 if short else np.uint32), values, added)

    def dense(self, groups: int = 1) -> Tensor:
        """The weight."""
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.starts))
        matrix = np.zeros((self.shape[0], int(np.prod(self.shape[1:]))), dtype=np.float32)
        matrix[rows, self.taps - rows // (self.shape[0] // groups) * matrix.shape[1]] = self.values
        return torch.from_numpy(matrix).view(self.shape)

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in (self.starts, self.taps, self.values, self.bias))
