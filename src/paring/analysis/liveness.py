"""Which units have to stay.

A unit has to stay when it is kept by a barrier, or when a row that has to stay reads it with a nonzero weight through
a column that cannot be folded or merged. The least set closed under that rule stays, everything else may go. So dead
units free their producers, transitively. A column can be folded when it always reads the same constant c and c = 0, or
the layer is linear, or the layer is a convolution without padding. Other convolutions read c only inside the border:
there the columns with constants c_j are merged into that of one representative r that stays, as Σ (c_j / c_r) column_j.
No layer loses its last unit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paring.analysis.feature_norms import can_move
from paring.analysis.interpret import Interpretation
from paring.analysis.rectangles import agreed_contractions, as_site, keep_rectangles
from paring.analysis.state import Liveness, Site
from paring.analysis.weights import groups_of, some, used

HEALTHY = 1 / 64  # a representative's constant is at least this share of the largest that it stands for


@dataclass
class Reader:
    """A layer call as a reader.

    constants (inputs,): as in the site, where the modes agree. used (outputs, inputs): the weight is nonzero. free
    (inputs,): the column may be folded or merged. merge (inputs,): it may be merged only. moves (inputs,): it is folded into
    the others, behind a LayerNorm.
    """

    site: Site
    constants: Tensor
    used: Tensor
    free: Tensor
    merge: Tensor
    moves: Tensor

    def read(self, needed: Tensor) -> Tensor:
        """Columns that some needed row reads with a nonzero weight, (inputs,)."""
        return some(self.used[needed[self.site.units]], 0)

    def stand_ins(self, needed: Tensor) -> Tensor:
        """Columns that may stand for the constants that go: merged themselves otherwise, needed, large enough."""
        size = torch.where(self.merge, self.constants.abs(), 0.0)
        gone = self.merge & ~needed[self.site.columns] & self.read(needed)
        least = HEALTHY * size[gone].max() if bool(gone.any()) else torch.inf
        return self.merge & (size >= least)


def agreed(analysis: Interpretation, other: Interpretation | None) -> list[Tensor]:
    """Constants per site; NaN where the other mode says otherwise."""
    if other is None:
        return [site.constants for site in analysis.sites]
    return [
        torch.where(torch.isclose(a.constants, b.constants, rtol=1e-9, atol=0.0), a.constants, torch.nan)
        for a, b in zip(analysis.sites, other.sites, strict=True)
    ]


def agreed_features(analysis: Interpretation, other: Interpretation | None) -> list[Tensor]:
    """Constants per norm over units; NaN where the other mode says otherwise."""
    if other is None:
        return [norm.constants for norm in analysis.features]
    return [
        torch.where(a.constants == b.constants, a.constants, torch.nan)
        for a, b in zip(analysis.features, other.features, strict=True)
    ]


def readers_of(
    analysis: Interpretation,
    constants: list[Tensor],
    unmerged: Collection[str] = (),
    features: Sequence[Tensor] = (),
    other: Interpretation | None = None,
) -> list[Reader]:
    """All layer calls that have input columns, in order; `unmerged`: layers where no column takes others over.

    features: constants per norm over units, where columns behind a LayerNorm may be folded; none where they may not.
    """
    zeros = {id(norm): known == 0 for norm, known in zip(analysis.features, features, strict=bool(features))}
    twins = analysis.sites if other is None else other.sites
    return [
        _reader(site, c, site.name not in unmerged, None if twin.behind is None else zeros.get(id(site.behind)))
        for site, c, twin in zip(analysis.sites, constants, twins, strict=True)
        if not site.lookup
    ]


def product_readers(analysis: Interpretation, other: Interpretation | None) -> list[Reader]:
    """All products of two activations that units meet in."""
    readers = []
    for site, used_by, free in map(as_site, agreed_contractions(analysis, other)):
        never = torch.zeros_like(free)
        readers.append(Reader(site, site.constants, used_by, free, never, never))
    return readers


def _reader(site: Site, constants: Tensor, merging: bool, zeros: Tensor | None) -> Reader:
    """zeros: which columns are zero in front of the LayerNorm behind which the layer is."""
    never = torch.zeros(len(site.columns), dtype=torch.bool)
    if not site.plain:
        every = torch.ones(len(site.units), len(site.columns), dtype=torch.bool)
        return Reader(site, constants, every, never, never, never)
    if not site.padded:
        free = constants.isfinite() if groups_of(site.module) == 1 else constants == 0
        moves = never if zeros is None or not can_move(site) else zeros & constants.isnan()
        return Reader(site, constants, used(site.module), free | moves, never, moves)
    merge = constants.isfinite() & (constants != 0) if merging and groups_of(site.module) == 1 else never
    return Reader(site, constants, used(site.module), (constants == 0) | merge, merge, never)


def decide(analysis: Interpretation, readers: list[Reader], spare: Collection[str], mixed: Tensor) -> Liveness:
    """The least set of units that has to stay; spare: layers that keep all of theirs; mixed: ids that norms over units read."""
    needed = torch.zeros(analysis.units + 1, dtype=torch.bool)
    needed[-1] = True
    needed[torch.tensor(list(analysis.kept), dtype=torch.int64)] = True
    needed[mixed] = True
    for site in analysis.sites:
        if site.name in spare:
            needed[site.units] = True
    liveness = Liveness(needed, needed.clone())
    while True:
        _close(needed, readers)
        while _represent(analysis, needed, readers):
            _close(needed, readers)
        liveness.kept |= needed
        if keep_rectangles(analysis, liveness, read_by(analysis.units, needed, readers)):
            continue
        empty = next((s for s in reversed(analysis.sites) if not liveness.kept[s.units].any()), None)
        if empty is None:
            return liveness
        read = read_by(analysis.units, needed, readers)
        idle = empty.units[~read[empty.units]]
        one = int(idle[0] if len(idle) else empty.units[0])
        liveness.last.add(one)
        liveness.kept[one] = True
        needed[one] = len(idle) == 0  # nobody reads an idle unit, so what it computes does not matter


def dead_units(analysis: Interpretation) -> Tensor:
    """Ids that are zero for every input, or that nobody reads, so that removal takes them as they are, (units,) bool."""
    constants = [torch.where(c == 0, c, torch.nan) for c in agreed(analysis, None)]
    readers = [*readers_of(analysis, constants), *product_readers(analysis, None)]
    mixed = [torch.zeros(0, dtype=torch.int64), *(norm.labels for norm in analysis.features)]
    return ~decide(analysis, readers, (), torch.cat(mixed)).kept[:-1]


def _close(needed: Tensor, readers: list[Reader]) -> None:
    """Add what needed rows read, until nothing changes. Backwards, so that a chain takes one pass."""
    count = -1
    while count != (count := int(needed.sum())):
        for reader in reversed(readers):
            columns = reader.read(needed) & ~reader.free
            needed[reader.site.columns[columns]] = True


def settle(analysis: Interpretation, readers: list[Reader], liveness: Liveness) -> bool:
    """After more units were kept: those that are read have to be computed as well. True if that kept even more."""
    before = int(liveness.kept.sum())
    while bool((more := liveness.kept & ~liveness.needed & read_by(analysis.units, liveness.needed, readers)).any()):
        liveness.needed |= more
        _close(liveness.needed, readers)
        while _represent(analysis, liveness.needed, readers):
            _close(liveness.needed, readers)
        liveness.kept |= liveness.needed
    return int(liveness.kept.sum()) > before


def _represent(analysis: Interpretation, needed: Tensor, readers: list[Reader]) -> bool:
    """Need one constant unit at every reader that merges and has none. True if units were added.

    Greedy: first the unit that serves most readers per unit that is tied to it, then one that is constant without a
    norm's help (its row reads nothing that changes), then the one with the largest constant.
    """
    sizes = []
    for reader in readers:
        gone = reader.merge & ~needed[reader.site.columns]
        if bool(gone.any()) and bool((gone & reader.read(needed)).any()):
            fit = reader.stand_ins(needed)
            if not bool((fit & needed[reader.site.columns]).any()):
                size = torch.zeros(analysis.units, dtype=torch.float64)
                size.scatter_reduce_(0, reader.site.columns[fit], reader.constants[fit].abs(), "amax")
                sizes.append(size)
    if not sizes:
        return False
    members = torch.zeros(analysis.units + 1, dtype=torch.int64)
    pure = torch.ones(analysis.units + 1, dtype=torch.bool)
    for site in analysis.sites:
        members.index_add_(0, site.units, torch.ones_like(site.units))
        pure[site.units[site.value.isnan()]] = False
    table = torch.stack(sizes)  # (readers, units): the constant there, 0 where the unit cannot serve
    units = (table > 0).any(0).nonzero().flatten()
    table = table[:, units]
    while len(table):
        served = (table > 0).sum(0)
        smallest = torch.where(table > 0, table, torch.inf).amin(0)
        best = torch.ones(len(units), dtype=torch.bool)
        for score in (served / members[units], pure[units].double(), torch.where(served > 0, smallest, 0.0)):
            best &= score == score[best].max()
        one = int(best.nonzero()[0])
        needed[units[one]] = True
        table = table[table[:, one] == 0]
    return True


def read_by(units: int, needed: Tensor, readers: list[Reader]) -> Tensor:
    """Ids that some needed row reads with a nonzero weight."""
    read = torch.zeros(units + 1, dtype=torch.bool)
    for reader in readers:
        read[reader.site.columns[reader.read(needed)]] = True
    return read
