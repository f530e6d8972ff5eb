"""What to remove: from an interpretation to a `ShrinkPlan`, the only way shapes change.

`liveness` says which units go. Where a column that always reads cⱼ goes with them, W[u, j]·cⱼ moves into the bias of
unit u. Where that layer has no bias, and a BatchNorm with running statistics is all that reads it, the running mean
moves the other way instead of a bias being made: the same in eval mode, while in train mode BatchNorm ignores a shift
and the running mean keeps following the batch means, so training can go on as if nothing had happened.

A padded convolution reads a constant inside the border only. There column r of one constant unit that stays takes over
the others: column_r += Σ (c_j / c_r) column_j.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paring.analysis.input_groups import InputGroups, keep_groups, whole_groups
from paring.analysis.interpret import Interpretation
from paring.analysis.liveness import Reader, agreed, agreed_features, decide, product_readers, readers_of, settle
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import Liveness, NormSite, Site
from paring.analysis.weights import columns_of, dims, groups_of, known, living_groups, used
from paring.core.select_linear import SelectLinear
from paring.removal.feature_plan import feature_changes, moved_columns
from paring.removal.report import Row, rows_of
from paring.removal.round_widths import round_up
from paring.removal.slices import cut


@dataclass(frozen=True)
class Cut:
    """Keep only these indices (sorted, int64) of a dimension of a parameter or buffer."""

    name: str
    dim: int
    keep: Tensor


@dataclass(frozen=True)
class Fold:
    """Add this (float64, size before cuts) to a parameter or buffer; a bias that is not there is made."""

    name: str
    amount: Tensor


@dataclass(frozen=True)
class Merge:
    """Add to slice `into` of a parameter along `dim` the slices `others`, each times its factor (float64)."""

    name: str
    dim: int
    into: int
    others: Tensor
    factors: Tensor


_SELECT = 8  # where widths are rounded: select columns when at least one of so many goes


@dataclass(frozen=True)
class ShrinkPlan:
    """Folds and merges first, then cuts.

    selects: linear layer -> columns of its (shrunk) input that it goes on reading. sizes: module without any tensor
    of its own -> features that it is left with. kept (ids + 1,): which ids of the interpretation stay.
    scales: folds that only the network's own forward needs (attention takes its scale from the size of its queries).
    attributes: numbers that modules of the user's own keep -> what they become, where the forward goes by them.
    groups: convolution -> groups that it is left with, where these become smaller. numbers: the same as attributes, for
    floating-point numbers that have to change. padded: LayerNorm -> how many features it counts, those that go included.
    """

    cuts: tuple[Cut, ...]
    folds: tuple[Fold, ...]
    selects: dict[str, Tensor]
    rows: tuple[Row, ...]
    merges: tuple[Merge, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    kept: Tensor | None = None
    scales: tuple[Fold, ...] = ()
    attributes: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    padded: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.cuts)

    @property
    def removed(self) -> int:
        """How many units go, those of coupled layers counted in each."""
        return sum(row.before - row.after for row in self.rows)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Any tensor of the shape of parameter `name` (a gradient, a momentum, a mask), cut the same way."""
        return cut(tensor, {one.dim: one.keep for one in self.cuts if one.name == name})


def full_name(module: str, leaf: str) -> str:
    """Name of a parameter of the module at this path."""
    return f"{module}.{leaf}" if module else leaf


def per_channel(norm: nn.Module) -> tuple[str, ...]:
    """What a norm, or another module with parameters per channel, may hold for each of them."""
    return ("weight", *known(norm).per_unit)


def make_plan(
    analysis: Interpretation,
    *,
    spare: Collection[str] = (),
    drop_inputs: bool = False,
    other: Interpretation | None = None,
    zeros_only: bool = False,
    multiple_of: int = 1,
    input_groups: InputGroups | None = None,
    streams: bool = True,
) -> ShrinkPlan:
    """The largest exact removal.

    spare: layers that keep all units (verification failed there). other: an interpretation in the other mode;
    constants then count only where the two agree. drop_inputs: linear layers also drop columns with zero
    weights only that stay in their input: inputs of the network, or some positions of a flattened map. zeros_only:
    nothing but exact zeros goes, so that no weight has to move. multiple_of: see `round_up`; above 1, columns that stay in
    a layer's input are dropped only where that pays. input_groups: layers that lose inputs in whole groups. streams: units
    that LayerNorms and RMSNorms read may go; with zeros_only they stay.
    """
    grouped = input_groups or {}
    constants = agreed(analysis, other)
    if zeros_only:
        constants = [torch.where(c == 0, c, torch.nan) for c in constants]
    features, through = agreed_features(analysis, other), streams and not zeros_only
    mixed = [
        norm.labels[known != 0] if through else norm.labels
        for norm, known in zip(analysis.features, features, strict=True)
    ]
    readers = readers_of(analysis, constants, grouped, features if through else (), other)
    readers += product_readers(analysis, other)
    liveness = decide(analysis, readers, spare, torch.cat([torch.zeros(0, dtype=torch.int64), *mixed]))
    round_up(analysis, liveness, multiple_of)
    while keep_groups(analysis, liveness, grouped) | settle(analysis, readers, liveness):
        round_up(analysis, liveness, multiple_of)
    once = {reader.site.name: reader for reader in readers}  # calls of one layer say the same
    merges = [merge for reader in once.values() if (merge := _merge(reader, liveness)) is not None]
    merging = {reader.site.name: reader.merge for reader in readers}
    moves = {name: moved_columns(reader, liveness.kept, liveness.needed) for name, reader in once.items()}
    cuts: list[Cut] = []
    folds: list[Fold] = []
    selects: dict[str, Tensor] = {}
    groups: dict[str, int] = {}
    done: set[str] = set()
    for site, constant in zip(analysis.sites, constants, strict=True):
        if site.name in done or not site.plain:
            continue
        done.add(site.name)
        fold = _fold(analysis, site, constant, liveness, merging[site.name]) if site.name in merging else None
        if fold is not None:
            folds.append(fold)
        if (moved := moves.get(site.name)) is not None:
            folds.append(Fold(full_name(site.name, "weight"), moved[0]))
            if bool((moved[1] != 0).any()):
                fold = Fold(full_name(site.name, "bias"), moved[1])
                folds.append(fold)
        read = liveness.kept[site.columns]  # index -1 is kept
        if drop_inputs and type(site.module) in (nn.Linear, SelectLinear) and not site.shared:
            unread = _unread_columns(site, liveness)
            if site.name in grouped:
                unread &= whole_groups(unread | ~read, grouped[site.name])
            if _pays(int(unread.sum()), int(read.sum()), multiple_of):
                selects[site.name] = (read.cumsum(0) - 1)[read & ~unread]
                read = read & ~unread
        cuts += _layer_cuts(site, liveness.kept[site.units], read, fold)
        if groups_of(site.module) > 1 and dims(site.module)[0] == 0:
            stay = liveness.kept[site.units]
            left = living_groups(groups_of(site.module), stay)
            if int(stay.sum()) * groups_of(site.module) != len(stay) * left:
                groups[site.name] = left
    sizes: dict[str, int] = {}
    for norm in {n.name: n for n in [*analysis.norms, *analysis.slopes]}.values():
        kept = liveness.kept[norm.labels]
        own = [leaf for leaf in per_channel(norm.module) if getattr(norm.module, leaf, None) is not None]
        cuts += [one for leaf in own for one in _cut(full_name(norm.name, leaf), 0, kept)]
        if not own and not bool(kept.all()):
            sizes[norm.name] = int(kept.sum())
    for one in analysis.loose:
        cuts += _cut(one.name, one.dim, liveness.kept[one.box].any(1))
    changes = feature_changes(analysis, liveness.kept)
    cuts += [one for name, kept in changes.cut.items() for one in _cut(name, 0, kept)]
    folds += [Fold(name, amount) for name, amount in changes.added.items()]
    rows = rows_of(analysis, readers, liveness, spare)
    return ShrinkPlan(
        tuple(cuts),
        tuple(folds),
        selects,
        rows,
        tuple(merges),
        sizes,
        liveness.kept,
        groups=groups,
        numbers=changes.numbers,
        padded=changes.padded,
    )


def _merge(reader: Reader, liveness: Liveness) -> Merge | None:
    """Constant columns that go, into the needed one with the largest constant."""
    site = reader.site
    gone = reader.merge & ~liveness.kept[site.columns] & reader.read(liveness.needed)
    if not bool(gone.any()):
        return None
    stand_ins = reader.stand_ins(liveness.needed) & liveness.needed[site.columns]
    into = int(torch.where(stand_ins, reader.constants.abs(), -1.0).argmax())
    others = gone.nonzero().flatten()
    factors = reader.constants[others] / reader.constants[into]
    return Merge(full_name(site.name, "weight"), dims(site.module)[1], into, others, factors)


def _fold(analysis: Interpretation, site: Site, constants: Tensor, liveness: Liveness, merging: Tensor) -> Fold | None:
    gone = ~liveness.kept[site.columns] & (constants != 0) & constants.isfinite() & ~merging
    if not bool(gone.any()) or groups_of(site.module) > 1:  # a whole group goes: no row is left that reads it
        return None
    amount = (columns_of(site.module, gone) @ constants[gone]) * liveness.needed[site.units]
    if not bool((amount != 0).any()):
        return None
    if getattr(site.module, "bias", None) is None and (norm := _sole_norm(analysis, site)) is not None:
        if getattr(norm.module, "running_mean", None) is not None:
            return Fold(full_name(norm.name, "running_mean"), -amount)
        if isinstance(norm.module, nn.modules.instancenorm._InstanceNorm):
            return None  # it takes any shift away
    return Fold(full_name(site.name, "bias"), amount)


def _sole_norm(analysis: Interpretation, site: Site) -> NormSite | None:
    """The norm that alone reads a layer, and nothing else."""
    for norm in analysis.norms:
        if (
            not site.shared
            and set(site.node.users) == {norm.node}
            and sum(n.name == norm.name for n in analysis.norms) == 1
        ):
            return norm
    return None


def _unread_columns(site: Site, liveness: Liveness) -> Tensor:
    """Columns that stay in the layer's input but have zero weights in all rows that matter; one column stays."""
    read = liveness.kept[site.columns]
    unread = read & ~used(site.module)[liveness.needed[site.units]].any(0)
    if bool(unread.any()) and bool((unread | ~read).all()):
        unread[int(unread.nonzero()[0])] = False
    return unread


def _pays(unread: int, read: int, multiple_of: int) -> bool:
    """Whether a layer selects its columns; where widths follow speed, gathering most of an input costs more than it saves."""
    return unread > 0 if multiple_of == 1 else _SELECT * unread >= read


def _layer_cuts(site: Site, units: Tensor, columns: Tensor, fold: Fold | None) -> list[Cut]:
    if isinstance(site.module, Recurrence):
        return [one for leaf, dim, keep in site.module.cuts(units, columns) for one in _cut(leaf, dim, keep)]
    weight, bias = full_name(site.name, "weight"), full_name(site.name, "bias")
    further = (leaf for leaf in known(site.module).own if getattr(site.module, leaf, None) is not None)
    own = [one for leaf in further for one in _cut(full_name(site.name, leaf), 0, units)]
    rows, across = dims(site.module)
    if site.lookup:
        return _cut(weight, rows, units) + own
    cuts = _cut(weight, rows, units) if groups_of(site.module) == 1 or rows == 0 else []
    if groups_of(site.module) > 1 and across == 1:  # the same places in every group that lives
        columns = columns.view(groups_of(site.module), -1).any(0)
    cuts += _cut(weight, across, columns)
    if getattr(site.module, "bias", None) is not None or (fold is not None and fold.name == bias):
        cuts += _cut(bias, 0, units)
    return cuts + own


def _cut(name: str, dim: int, kept: Tensor) -> list[Cut]:
    return [] if bool(kept.all()) else [Cut(name, dim, kept.nonzero().flatten())]
