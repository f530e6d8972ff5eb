"""What goes with a residual branch: the rows of a cost table that only it needs.

A closed branch takes all of these rows, and so does one that contains it; chances multiply, as gates are independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paring.analysis.wiring import Wiring


def inside_branches(wiring: Wiring, names: Sequence[str]) -> dict[str, Tensor]:
    """For every branch, which of the rows of these names are of it: (rows,) bool."""
    return {
        branch.name: torch.tensor([not branch.members.isdisjoint((name, f"{name}.weight")) for name in names])
        for branch in wiring.branches
    }


def beside_rows(wiring: Wiring, one: Tensor) -> Tensor:
    """Rows of a cost table, (7, parameters), for `Wiring.beside`. one (1,): its type."""
    sizes = one.new_tensor([float(size) for size in wiring.beside.values()])
    table = one.new_zeros(7, len(sizes))
    table[4] = sizes
    return table
