"""What to remove: from an interpretation to a `ShrinkPlan`, the only way shapes change.

`liveness` says which units go. Where a column that always reads cⱼ goes with them, W[u, j]·cⱼ moves into the bias of
unit u. Where that layer has no bias, and a BatchNorm with running statistics is all that reads it, the running mean
moves the other way instead of a bias being made: the same in eval mode, while in train mode BatchNorm ignores a shift
and the running mean keeps following the batch means, so training can go on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from paring.graph.interpret import Interpretation
from paring.graph.liveness import Fate, agreed, decide, readers_of
from paring.graph.report import Row, rows_of
from paring.graph.select import SelectLinear
from paring.graph.state import Site


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
class ShrinkPlan:
    """Folds first, then cuts. selects: linear layer -> columns of its (shrunk) input that it goes on reading."""

    cuts: tuple[Cut, ...]
    folds: tuple[Fold, ...]
    selects: dict[str, Tensor]
    rows: tuple[Row, ...]

    def __bool__(self) -> bool:
        return bool(self.cuts)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Any tensor of the shape of parameter `name` (a gradient, a momentum, a mask), cut the same way."""
        for cut in self.cuts:
            if cut.name == name:
                tensor = tensor.index_select(cut.dim, cut.keep.to(tensor.device))
        return tensor


def full_name(module: str, leaf: str) -> str:
    """Name of a parameter of the module at this path."""
    return f"{module}.{leaf}" if module else leaf


def make_plan(
    found: Interpretation,
    *,
    spare: Collection[str] = (),
    drop_inputs: bool = False,
    other: Interpretation | None = None,
) -> ShrinkPlan:
    """The largest exact removal.

    spare: layers that keep all units (verification failed there). other: an interpretation in the other mode;
    constants then count only where the two agree. drop_inputs: linear layers also drop columns with zero
    weights only that stay in their input: inputs of the network, or some positions of a flattened map.
    """
    constants = agreed(found, other)
    readers = readers_of(found, constants)
    fate = decide(found, readers, spare)
    cuts: list[Cut] = []
    folds: list[Fold] = []
    selects: dict[str, Tensor] = {}
    done: set[str] = set()
    for site, constant in zip(found.sites, constants, strict=True):
        if site.name in done or not site.plain:
            continue
        done.add(site.name)
        fold = _fold(found, site, constant, fate) if site.kind != "embedding" else None
        if fold is not None:
            folds.append(fold)
        read = fate.kept[site.columns]  # index -1 is kept
        if drop_inputs and type(site.module) in (nn.Linear, SelectLinear) and not site.shared:
            unread = _unread_columns(site, fate)
            if bool(unread.any()):
                selects[site.name] = (read.cumsum(0) - 1)[read & ~unread]
                read = read & ~unread
        cuts += _layer_cuts(site, fate.kept[site.units], read, fold)
    for norm in {n.name: n for n in found.norms}.values():
        kept = fate.kept[norm.labels]
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if getattr(norm.module, leaf, None) is not None:
                cuts += _cut(full_name(norm.name, leaf), 0, kept)
    rows = rows_of(found, readers, fate, spare)
    return ShrinkPlan(tuple(cuts), tuple(folds), selects, rows)


def _fold(found: Interpretation, site: Site, constants: Tensor, fate: Fate) -> Fold | None:
    weight = site.module.weight
    assert isinstance(weight, Tensor)
    gone = ~fate.kept[site.columns] & (constants != 0) & constants.isfinite()
    if not bool(gone.any()):
        return None
    columns = weight.detach().cpu()[:, gone].double()
    columns = columns.flatten(2).sum(2) if columns.dim() > 2 else columns
    amount = (columns @ constants[gone]) * fate.needed[site.units]
    if not bool((amount != 0).any()):
        return None
    if getattr(site.module, "bias", None) is None:
        for norm in found.norms:
            alone = sum(n.name == norm.name for n in found.norms) == 1 and set(site.node.users) == {norm.node}
            if alone and norm.module.running_mean is not None:
                return Fold(full_name(norm.name, "running_mean"), -amount)
    return Fold(full_name(site.name, "bias"), amount)


def _unread_columns(site: Site, fate: Fate) -> Tensor:
    """Columns that stay in the layer's input but have zero weights in all rows that matter; one column stays."""
    weight = site.module.weight
    assert isinstance(weight, Tensor)
    used = (weight.detach() != 0).cpu()[fate.needed[site.units]].any(0)
    read = fate.kept[site.columns]
    unread = read & ~used
    if bool(unread.any()) and bool((unread | ~read).all()):
        unread[int(unread.nonzero()[0])] = False
    return unread


def _layer_cuts(site: Site, units: Tensor, columns: Tensor, fold: Fold | None) -> list[Cut]:
    weight, bias = full_name(site.name, "weight"), full_name(site.name, "bias")
    if site.kind == "embedding":
        return _cut(weight, 1, units)
    cuts = _cut(weight, 0, units)
    if getattr(site.module, "groups", 1) == 1:
        cuts += _cut(weight, 1, columns)
    if getattr(site.module, "bias", None) is not None or (fold is not None and fold.name == bias):
        cuts += _cut(bias, 0, units)
    return cuts


def _cut(name: str, dim: int, kept: Tensor) -> list[Cut]:
    return [] if bool(kept.all()) else [Cut(name, dim, kept.nonzero().flatten())]
