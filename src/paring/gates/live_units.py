"""What is left of a network's units once all that closed gates make useless has gone, as removal would do it.

The rules are those of `paring.analysis.liveness`, told from the wiring and the gates alone: a unit is constant when its gate
is closed or nothing that moves reaches it, and constants fold into their readers; it is needed when it is kept by a
barrier, or when a needed unit reads it with an open weight; and no layer loses its last unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.analysis import Layer, Wiring
from paring.cost import Openness
from paring.cost.packed_weights import packed_mask


@dataclass(frozen=True)
class _Reader:
    """A layer as a reader.

    columns (inputs,): its column gates. mask (outputs, inputs): 1.0 where it has open weights, so that products tell what
    reads what, many times as fast as indexing; None where everywhere.
    opened (outputs,): its unit gates. zero (outputs,): rows without weights, as a closed gate in the layer leaves them.
    """

    layer: Layer
    columns: Tensor
    mask: Tensor | None
    opened: Tensor
    zero: Tensor

    def read(self, rows: Tensor) -> Tensor:
        """Columns that one of these rows reads with an open weight, (inputs,)."""
        rows = rows & ~self.zero
        if self.mask is not None:
            return (rows.float() @ self.mask > 0) & self.columns
        groups = self.layer.groups
        return rows.view(groups, -1).any(1).repeat_interleave(self.layer.inputs // groups) & self.columns

    def reached(self, columns: Tensor) -> Tensor:
        """Rows that read one of these columns with an open weight, (outputs,)."""
        if self.layer.inputs == 0 or self.layer.kind == "recurrent":  # a state moves by its biases alone
            return torch.ones(self.layer.outputs, dtype=torch.bool)
        columns = columns & self.columns
        if self.mask is not None:
            return self.mask @ columns.float() > 0
        groups = self.layer.groups
        return columns.view(groups, -1).any(1).repeat_interleave(self.layer.outputs // groups)


def live(given: Openness, wiring: Wiring) -> Openness:
    """What is left of a support (zeros and ones): units that removal keeps, and columns that layers go on reading.

    With gates on weights no unit closes by itself; it goes when all its weights are closed (what stays is a constant,
    which folds into the readers), or when no open weight reads it, and that is followed to the end. Units that are
    tied to others go when none of them computes anything, or nobody reads them. A layer keeps its last unit.
    """
    if not given.weights and not given.inputs and _all_open_somewhere(given):
        return given
    gone = {name for branch in wiring.branches if _shut(given, branch.name) for name in branch.members}
    readers = [_reader(layer, given, wiring) for layer in wiring.layers if layer.name not in gone]
    fixed, met = _fixed(wiring)
    moving = _moving(readers, wiring.units)
    needed = fixed | (met & moving) | _in_heads(wiring, readers)
    kept = torch.zeros_like(needed)
    while True:
        _close(needed, moving, readers)
        kept |= needed
        read = _read_by(needed, readers)
        if bool((more := kept & ~needed & read).any()):
            needed |= more
            continue
        empty = next((r.layer.labels for r in reversed(readers) if not bool(kept[r.layer.labels].any())), None)
        if empty is None:
            break
        idle = empty[~read[empty]]
        kept[idle[0] if len(idle) else empty[0]] = (
            True  # as what it computes matters to nobody, an idle one where there is one
        )
    units = {r.layer.name: kept[r.layer.labels].double() for r in readers if not bool(kept[r.layer.labels].all())}
    units |= {name: kept[wiring.layer(name).labels].double() for name in given.units}
    inputs = {r.layer.name: _selected(r, kept, needed) for r in readers if given.inputs}
    return Openness(units, inputs, given.weights, given.blocks, settled=True)


def _shut(given: Openness, branch: str) -> bool:
    """Whether the gate of a branch is closed."""
    return branch in given.blocks and not bool(given.blocks[branch] > 0)


def _all_open_somewhere(given: Openness) -> bool:
    """Whether every gated layer has an open unit, so that each open unit reads and is read."""
    return all(bool((alive > 0).any()) for alive in given.units.values())


def _reader(layer: Layer, given: Openness, wiring: Wiring) -> _Reader:
    columns = given.inputs.get(layer.name)
    weights = given.weights.get(layer.name)
    packed = packed_mask(layer.name, given.weights, wiring, layer.outputs, layer.inputs) if wiring.packed else None
    alive = given.units.get(layer.name)
    opened = torch.ones(layer.outputs, dtype=torch.bool) if alive is None else (alive > 0).cpu()
    plain = weights is not None and layer.groups == 1 and not layer.lookup
    return _Reader(
        layer,
        torch.ones(layer.inputs, dtype=torch.bool) if columns is None else (columns > 0).cpu(),
        packed if packed is not None else _columns(weights) if plain and weights is not None else None,
        opened,
        ~opened if layer.norm is None else torch.zeros_like(opened),  # behind a norm, the layer's own weights stay
    )


def _fixed(wiring: Wiring) -> tuple[Tensor, Tensor]:
    """Ids that have to stay, and ids that products or norms over units read; the last entry stands for the network's input."""
    fixed = torch.ones(wiring.units + 1, dtype=torch.bool)
    for layer in wiring.layers:
        fixed[layer.labels] = not layer.gateable
    if wiring.fixed is not None:
        fixed[:-1] = wiring.fixed
    met = torch.zeros_like(fixed)
    if wiring.mixed is not None:  # a norm reads what is not zero
        met[:-1] = wiring.mixed
    for product in wiring.products:
        if product.meets:  # queries and keys are read by each other
            met[product.left] = met[product.right] = True
    return fixed, met


def _in_heads(wiring: Wiring, readers: list[_Reader]) -> Tensor:
    """Ids of attention heads in layers with gates on weights, (units + 1,): heads go whole, with every row of them."""
    found = torch.zeros(wiring.units + 1, dtype=torch.bool)
    for group in wiring.groups:
        if group.heads:
            found[group.ids] = True
    open_ = torch.zeros_like(found)
    for reader in readers:
        if reader.mask is not None:
            open_[reader.layer.labels[reader.opened]] = True
    return found & open_


def _moving(readers: list[_Reader], units: int) -> Tensor:
    """Ids that something reaches which is no constant, (units + 1,): from the input on, through what is open."""
    moving = torch.ones(units + 1, dtype=torch.bool)
    for reader in readers:
        moving[reader.layer.labels] = False
    count = -1
    while count != (count := int(moving.sum())):
        for reader in readers:
            rows = reader.reached(moving[reader.layer.sources]) & reader.opened
            moving[reader.layer.labels[rows]] = True
    return moving


def _close(needed: Tensor, moving: Tensor, readers: list[_Reader]) -> None:
    """Add what needed rows read and what is no constant, until nothing changes."""
    count = -1
    while count != (count := int(needed.sum())):
        for reader in reversed(readers):
            sources = reader.layer.sources[reader.read(needed[reader.layer.labels])]
            needed[sources[moving[sources]]] = True


def _read_by(needed: Tensor, readers: list[_Reader]) -> Tensor:
    """Ids that some needed row reads with an open weight."""
    read = torch.zeros_like(needed)
    for reader in readers:
        read[reader.layer.sources[reader.read(needed[reader.layer.labels])]] = True
    return read


def _selected(reader: _Reader, kept: Tensor, needed: Tensor) -> Tensor:
    """Columns that the layer goes on reading, (inputs,): a Linear leaves out what no needed row reads, but for the last."""
    layer = reader.layer
    stays = kept[layer.sources]
    if layer.kind != "linear" or layer.groups != 1:
        return torch.ones(layer.inputs, dtype=torch.double)
    read = stays & reader.read(needed[layer.labels])
    if bool(stays.any()) and not bool(read.any()):
        read[int(stays.nonzero()[0])] = True
    return read.double()


def _columns(weights: Tensor) -> Tensor:
    """1.0 for inputs that a unit has an open weight for, else 0.0: (outputs, inputs), for ungrouped layers."""
    mask = (weights > 0).cpu()
    return (mask.flatten(2).any(2) if mask.dim() > 2 else mask).float()
