"""One gate for units that live in several modules: each module holds a `SharedGate`, which shows its share of the gates.

Units tied by a residual add, a product or a depthwise convolution close together or not at all, so one gate of shape
(units,) multiplies them wherever they are computed. A module may also carry several such gates, for different rows of
its own: a BatchNorm behind a concatenation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from paring.core.gate import Gate


class SharedGate(Gate):
    """The unit multiplier of one module, gathered from gates that other modules may hold as well.

    Args:
        parts: gates of shape (n,).
        index: (units,), for each unit of the module its entry in all parts laid end to end; -1: always open.

    Attributes:
        index: the same for the units that the module has now; entries count as before anything was cut.
        dense_index: the same for the units that it had before anything was cut.

    Raises:
        ValueError: an index outside the parts.
    """

    index: Tensor
    dense_index: Tensor

    def __init__(self, parts: Sequence[Gate], index: Tensor) -> None:
        super().__init__()
        total = sum(part.dense_shape[0] for part in parts)
        if bool(((index < -1) | (index >= total)).any()):
            raise ValueError(
                f"SharedGate: an index lies outside -1..{total - 1}, the entries of its {len(parts)} gates"
            )
        self.parts = nn.ModuleList(parts)
        self.register_buffer("index", index.clone(), persistent=False)
        self.register_buffer("dense_index", index.clone(), persistent=False)
        self._plain = len(parts) == 1 and torch.equal(index.cpu(), torch.arange(total))

    @property
    def shape(self) -> torch.Size:
        return self.index.shape

    @property
    def per_example(self) -> bool:
        return any(part.per_example for part in self.gates())

    def gates(self) -> Iterator[Gate]:
        """The gates behind this multiplier."""
        for part in self.parts:
            assert isinstance(part, Gate)
            yield part

    def entries(self) -> Iterator[tuple[Gate, Tensor, Tensor]]:
        """(gate, rows of the module, entries of the gate), the last two (m,) each, as before anything was cut."""
        start = 0
        for part in self.gates():
            end = start + part.dense_shape[0]
            rows = ((self.dense_index >= start) & (self.dense_index < end)).nonzero().flatten()
            yield part, rows, self.dense_index[rows] - start
            start = end

    def part_at(self, row: int) -> Gate | None:
        """The gate of this unit, counted as before anything was cut; None where there is none."""
        entry = int(self.dense_index[row])
        for part in self.gates() if entry >= 0 else ():
            if entry < part.dense_shape[0]:
                return part
            entry -= part.dense_shape[0]
        return None

    def add(self, gate: Gate, index: Tensor) -> None:
        """One more gate: `index` (units,) as in the constructor, entries of this gate alone.

        Raises:
            ValueError: a row has a gate already.
        """
        index = index.to(self.index.device)
        taken = (self.index >= 0) & (index >= 0)
        if bool(taken.any()):
            raise ValueError(f"{int(taken.sum())} units of this module already have a gate at 'units'")
        offset = sum(part.dense_shape[0] for part in self.gates())
        self.index = torch.where(index >= 0, index + offset, self.index)
        self.dense_index = self.index.clone()
        self.parts.append(gate)
        self._plain = False

    def note_cut(self, before: torch.Size, kept: Mapping[int, Tensor]) -> None:
        super().note_cut(before, kept)
        if 0 in kept:
            self.index = self.index[kept[0].to(self.index.device)]
            self._plain = False

    def forward(self, batch: int | None = None) -> Tensor:
        return self.gather(lambda part: part(batch))

    def prob_open(self) -> Tensor:
        return self.gather(lambda part: part.prob_open())

    def value(self) -> Tensor:
        return self.gather(lambda part: part.value())

    def constant(self) -> Tensor:
        return self.gather(lambda part: part.constant())

    @property
    def transparent(self) -> bool:
        return all(part.transparent for part in self.gates())

    def permanently_closed(self) -> Tensor:
        return self.gather(lambda part: part.permanently_closed().float(), rest=0.0) > 0

    def gather(self, ask: Callable[[Gate], Tensor], rest: float = 1.0) -> Tensor:
        """What each gate answers, of its shape, laid out over the units; `rest` where there is no gate."""
        values = [ask(part) for part in self.gates()]
        if self._plain and not any(part.dense_shape != part.shape for part in self.gates()):
            return values[0]
        batches = [v.shape[:1] for v in values if v.dim() == 2]  # no next(), which torch.compile may not follow
        batch = batches[0] if batches else torch.Size()
        laid = [_whole(part, v).expand(*batch, -1) for part, v in zip(self.gates(), values, strict=True)]
        return torch.cat([*laid, values[0].new_full((*batch, 1), rest)], -1)[..., self.index]  # -1 is the last entry

    def extra_repr(self) -> str:
        return f"({len(self.index)},)"


def _whole(part: Gate, value: Tensor) -> Tensor:
    return part.whole(value) if value.dim() == 1 else part.whole(value.T).T
