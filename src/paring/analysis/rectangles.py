"""What products of activations and units in several dimensions mean for which units stay."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paring.analysis.grids import Contraction, restore
from paring.analysis.state import Liveness, Site

if TYPE_CHECKING:
    from paring.analysis.interpret import Interpretation


def keep_rectangles(analysis: Interpretation, liveness: Liveness, read: Tensor) -> bool:
    """Keep more units where tensors would no longer be boxes; True if there were any. `read`: ids somebody reads."""
    if not analysis.grids and not analysis.slice_ties:
        return False
    late = liveness.kept & ~liveness.needed & read
    more = restore(analysis.grids, analysis.slice_ties, liveness.kept, read)
    liveness.kept[more] = True
    liveness.needed |= late
    liveness.needed[more[read[more]]] = True
    liveness.rectangular.update(more.tolist())
    return len(more) > 0 or bool(late.any())


def agreed_contractions(analysis: Interpretation, other: Interpretation | None) -> list[Contraction]:
    """The contractions, with what holds in the other mode as well."""
    if other is None:
        return analysis.contractions
    return [
        replace(
            a,
            constants=torch.where(torch.isclose(a.constants, b.constants, rtol=1e-9, atol=0.0), a.constants, torch.nan),
            used=a.used | b.used,
            free=a.free & b.free,
        )
        for a, b in zip(analysis.contractions, other.contractions, strict=True)
    ]


def as_site(contraction: Contraction) -> tuple[Site, Tensor, Tensor]:
    """The contraction as a layer without weights: site, used (rows, columns), free (columns,)."""
    rows, width = contraction.columns.shape
    if width == 1:
        columns, at = torch.unique(contraction.columns.flatten(), return_inverse=True)
        used = torch.zeros(rows, len(columns), dtype=torch.bool)
        used[torch.arange(rows), at] = contraction.used.flatten()
        free = torch.zeros(len(columns), dtype=torch.bool)
        constants = torch.full((len(columns),), torch.nan, dtype=torch.float64)
    else:
        columns, free, constants = (
            contraction.columns.flatten(),
            contraction.free.flatten(),
            contraction.constants.flatten(),
        )
        used = torch.zeros(rows, rows, width, dtype=torch.bool)
        used[torch.arange(rows), torch.arange(rows)] = contraction.used
        used = used.view(rows, rows * width)
    silent = torch.where(free, constants, torch.nan)
    nothing = torch.full((rows,), torch.nan, dtype=torch.float64)
    site = Site(
        name=f"product in {contraction.node.name}",
        kind="product",
        module=nn.Identity(),
        node=contraction.node,
        units=contraction.units,
        columns=columns,
        constants=silent,
        value=nothing,
        padded=False,
        positions=1,
        plain=False,
    )
    return site, used, free
