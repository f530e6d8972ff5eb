"""The groups of a network before training: which units go together, what each unit costs, and whether it can be gated.

    print(pr.groups(net, example))

The cost of a unit is what leaves the network with it: its rows in every layer of the group, their biases and norm
parameters, and the columns that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from paring.analysis import Group, Wiring, wiring
from paring.core import Refusal, plain_net
from paring.cost import CostModel, Openness
from paring.gates.coupled import entries
from paring.gates.place import Site, site_of


@dataclass(frozen=True)
class GroupRow:
    """One group.

    layers: where its units are computed. units: how many there are, each with one gate. parameters, macs: of one unit, for
    one example, columns that read it included (the mean over the units). gates: modules where a gate acts, () if there can
    be none. coupling: what ties the layers. reason: why there can be no gate ("" if there can).
    """

    layers: tuple[str, ...]
    units: int
    parameters: float
    macs: float
    gates: tuple[str, ...]
    coupling: str
    reason: str

    @property
    def gateable(self) -> bool:
        """Whether `at="units"` gates this group."""
        return not self.reason


@dataclass(frozen=True)
class Groups:
    """All groups in order of execution; ``str()`` is a table, ``to_dict()`` the same for machines."""

    title: str
    rows: tuple[GroupRow, ...]

    def __iter__(self) -> Iterator[GroupRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Title and rows."""
        return {"title": self.title, "groups": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ("group", "units", "parameters", "MACs", "gate acts in", "note")
        body = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [self.title, _line(head, widths), "-" * (sum(widths[:-1]) + 2 * (len(widths) - 1) + len(head[-1]))]
        return "\n".join([*lines, *(_line(row, widths) for row in body)])


def groups(net: nn.Module, example: Any) -> Groups:
    """Which units of `net` can only go together, and what one of each group costs.

    Args:
        net: any network, before gates go in; left as it is.
        example: an input with the batch first, a tuple of inputs or a mapping of keyword arguments.

    Raises:
        paring.CaptureError: the network cannot be captured.
    """
    net = plain_net(net, "groups")
    found = wiring(net, example)
    modules = dict(net.named_modules(remove_duplicate=False))
    model = CostModel(found)
    rows = []
    for group in found.groups:
        parameters, macs = _unit_cost(group, found, model)
        carriers: tuple[str, ...] = ()
        if isinstance(made := site_of(group, found, modules), Site):
            carriers = tuple(mount.module for mount in made.mounts) or (made.module,)
        told = made.reason if isinstance(made, Refusal) else ""
        rows.append(GroupRow(group.layers, group.size, parameters, macs, carriers, group.coupling, told))
    return Groups(type(net).__name__, tuple(rows))


def _unit_cost(group: Group, found: Wiring, model: CostModel) -> tuple[float, float]:
    """Parameters and MACs per unit: what closing all of the group saves would count readers once, so close one by one."""
    dense, saved = model(), torch.zeros(2, dtype=torch.float64)
    ends = sorted({0, group.size - 1})
    for one in ends:
        cost = model(_without(one, group, found))
        saved += torch.stack([dense.parameters - cost.parameters, dense.macs - cost.macs])
    parameters, macs = (saved / len(ends)).tolist()
    return parameters, macs


def _without(one: int, group: Group, found: Wiring) -> Openness:
    return Openness(units={name: (entries(group, name, found) != one).double() for name in group.layers})


def _cells(row: GroupRow) -> tuple[str, ...]:
    note = row.reason or row.coupling
    numbers = (f"{row.units:,}", f"{row.parameters:,.10g}", f"{row.macs:,.10g}")
    return (_names(row.layers), *numbers, _names(row.gates) if row.gates else "-", note)


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(name or "(net)" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(c.rjust(w) if i in (1, 2, 3) else c.ljust(w) for i, (c, w) in pairs).rstrip()
