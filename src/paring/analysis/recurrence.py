"""One layer and direction of a recurrent layer, as a site."""

from __future__ import annotations

from torch import Tensor, nn


class Recurrence(nn.Linear):
    """Stands for one layer and direction: (units, columns) of what reads what, and where a cut of it lies."""

    def __init__(self, path: str, weight: Tensor, leaves: dict[str, int], split: int, gates: int) -> None:
        """leaves: parameter -> 0 for rows alone, 1 with input columns, 2 with state columns. split: input columns."""
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.path, self.leaves, self.split, self.gates = path, leaves, split, gates

    def cuts(self, units: Tensor, columns: Tensor) -> list[tuple[str, int, Tensor]]:
        """Parameter, dimension and what of it stays, given which units and columns stay."""
        found = []
        for leaf, reads in self.leaves.items():
            name = f"{self.path}.{leaf}" if self.path else leaf
            found.append((name, 0, units.repeat(self.gates)))
            if reads:
                found.append((name, 1, columns[: self.split] if reads == 1 else columns[self.split :]))
        return found
