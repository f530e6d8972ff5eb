"""Which units have to stay.

A unit has to stay when it is kept by a barrier, or when a row that has to stay reads it with a nonzero weight through
a column that cannot be folded. The least set closed under that rule stays, everything else may go. So dead units free
their producers, transitively. A column can be folded when it always reads the same constant c and c = 0, or the layer
is linear, or the layer is a convolution without padding. No layer loses its last unit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paring.graph.interpret import Interpretation
from paring.graph.state import Site


@dataclass
class Reader:
    """A layer call as a reader.

    constants (inputs,): as in the site, where the modes agree. used (outputs, inputs): the weight is nonzero. free
    (inputs,): the column may be folded.
    """

    site: Site
    constants: Tensor
    used: Tensor
    free: Tensor


@dataclass
class Fate:
    """Per group id (one more at the end for -1, always true): needed = has to be computed, kept = stays."""

    needed: Tensor
    kept: Tensor
    last: set[int] = field(default_factory=set)


def agreed(found: Interpretation, other: Interpretation | None) -> list[Tensor]:
    """Constants per site; NaN where the other mode says otherwise."""
    if other is None:
        return [site.constants for site in found.sites]
    return [
        torch.where(torch.isclose(a.constants, b.constants, rtol=1e-9, atol=0.0), a.constants, torch.nan)
        for a, b in zip(found.sites, other.sites, strict=True)
    ]


def readers_of(found: Interpretation, constants: list[Tensor]) -> list[Reader]:
    """All layer calls that have input columns, in order."""
    return [_reader(site, c) for site, c in zip(found.sites, constants, strict=True) if site.kind != "embedding"]


def _reader(site: Site, constants: Tensor) -> Reader:
    weight = site.module.weight
    assert isinstance(weight, Tensor)
    if not site.plain or getattr(site.module, "groups", 1) > 1:
        used = torch.ones(len(site.units), len(site.columns), dtype=torch.bool)
        return Reader(site, constants, used, torch.zeros(len(site.columns), dtype=torch.bool))
    used = (weight.detach() != 0).cpu()
    used = used.flatten(2).any(2) if used.dim() > 2 else used
    return Reader(site, constants, used, constants == 0 if site.padded else constants.isfinite())


def decide(found: Interpretation, readers: list[Reader], spare: Collection[str]) -> Fate:
    needed = torch.zeros(found.units + 1, dtype=torch.bool)
    needed[-1] = True
    needed[torch.tensor(list(found.kept), dtype=torch.int64)] = True
    for site in found.sites:
        if site.name in spare:
            needed[site.units] = True
    fate = Fate(needed, needed.clone())
    while True:
        _close(needed, readers)
        fate.kept |= needed
        empty = next((s for s in reversed(found.sites) if not fate.kept[s.units].any()), None)
        if empty is None:
            return fate
        read = read_by(found.units, needed, readers)
        idle = empty.units[~read[empty.units]]
        one = int(idle[0] if len(idle) else empty.units[0])
        fate.last.add(one)
        fate.kept[one] = True
        needed[one] = len(idle) == 0  # nobody reads an idle unit, so what it computes does not matter


def _close(needed: Tensor, readers: list[Reader]) -> None:
    """Add what needed rows read, until nothing changes. Backwards, so that a chain takes one pass."""
    count = -1
    while count != (count := int(needed.sum())):
        for reader in reversed(readers):
            rows = needed[reader.site.units]
            columns = reader.used[rows].any(0) & ~reader.free
            needed[reader.site.columns[columns]] = True


def read_by(units: int, needed: Tensor, readers: list[Reader]) -> Tensor:
    """Ids that some needed row reads with a nonzero weight."""
    read = torch.zeros(units + 1, dtype=torch.bool)
    for reader in readers:
        read[reader.site.columns[reader.used[needed[reader.site.units]].any(0)]] = True
    return read
