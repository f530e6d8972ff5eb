"""Layers that read their inputs in groups: an N:M pattern says how many weights of m consecutive inputs are open.

When such a layer loses single inputs, those behind move up into other groups, and the pattern is none any more. So of each
group either all m inputs go or none: what is left keeps its groups. For the same reason the columns of constants are not
merged into one column there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paring.analysis.interpret import Interpretation
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import Liveness, Site
from paring.analysis.weights import groups_of

InputGroups = Mapping[str, int]
"""Layer name, or that of a packed weight, → m. Layers with groups of their own lose no single columns anyway."""


def keep_groups(analysis: Interpretation, liveness: Liveness, input_groups: InputGroups) -> bool:
    """Keep the units of every group of which one input stays. True if that kept any more.

    They are kept without being needed, as in `round_up`.
    """
    changed = False
    while True:
        more = []
        for site in analysis.sites:
            for columns, size in _grouped(analysis, site, input_groups):
                kept = liveness.kept[columns]
                more.append(columns[_whole(kept, size) & ~kept])
        units = torch.cat([*more, torch.empty(0, dtype=torch.int64)]).unique()
        if not len(units):
            return changed
        changed = True
        liveness.kept[units] = True
        liveness.grouped.update(units.tolist())


def _grouped(analysis: Interpretation, site: Site, input_groups: InputGroups) -> list[tuple[Tensor, int]]:
    """The columns that a layer reads in groups, and the size of these: all of them, or those of a packed weight."""
    found = []
    if isinstance(site.module, Recurrence):
        own = site.module
        for leaf, reads in own.leaves.items():
            held = site.columns[: own.split] if reads == 1 else site.columns[own.split :]
            if reads:
                found.append((held, input_groups.get(f"{own.path}.{leaf}" if own.path else leaf, 1)))
    elif groups_of(site.module) == 1:
        alias = analysis.aliases.get(f"{site.name}.weight" if site.name else "weight")
        name = site.name if alias is None or alias.swapped else alias.name
        found.append((site.columns, input_groups.get(name, input_groups.get(site.name, 1))))
    return [(columns, size) for columns, size in found if size > 1]


def whole_groups(gone: Tensor, size: int) -> Tensor:
    """Of the columns that could go, those whose whole group goes."""
    return gone & ~_whole(~gone, size)


def _whole(chosen: Tensor, size: int) -> Tensor:
    """Every column whose group of `size` has a chosen one."""
    group = torch.arange(len(chosen)) // size
    found = torch.zeros(-(-len(chosen) // size), dtype=torch.bool)
    found[group[chosen]] = True
    return found[group]
