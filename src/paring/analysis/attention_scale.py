"""The 1/√D of scaled dot product attention, when head dimensions go.

The operation takes D from its input, so that fewer dimensions D' would mean another scale. The old one is kept by
multiplying the rows that make the queries by √(D'/D), weight and bias, or by writing the scale into the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from paring.analysis import ops
from paring.analysis.grids import Contraction
from paring.analysis.state import NormSite, Site, packet


@dataclass(frozen=True)
class Scaled:
    """One attention that takes its scale from the size of its queries.

    size: D. queries (n, D): ids per head. site: the layer that alone makes them, rows: its rows that do; "" when there
    is none, so that the scale cannot be put there.
    """

    node: fx.Node
    size: int
    queries: Tensor
    site: str = ""
    rows: Tensor | None = None

    def settle(
        self,
        sites: Sequence[Site],
        norms: Sequence[NormSite],
        contractions: Sequence[Contraction],
        kept: Collection[int],
        groups: Tensor,
    ) -> Scaled:
        """With the layer that makes the queries, and ids of groups; the arguments hold ids as the producers gave them."""
        mine = self.queries[self.queries >= 0]
        made = self._maker(sites)
        seen = sum(bool(torch.isin(m.columns, mine).any()) for m in contractions)
        others = [s.columns for s in sites] + [n.labels for n in norms]
        alone = seen == 1 and not set(mine.tolist()) & set(kept) and not any(torch.isin(o, mine).any() for o in others)
        if made is None or not alone or not bool(torch.isin(mine, made.units).all()) or bool((self.queries < 0).any()):
            return replace(self, queries=groups[self.queries])
        rows = torch.isin(made.units, mine).nonzero().flatten()
        return replace(self, queries=groups[self.queries], site=made.name, rows=rows)

    def _maker(self, sites: Sequence[Site]) -> Site | None:
        node = self.node.args[0]
        while isinstance(node, fx.Node):
            name = packet(node.target)
            for site in sites:
                if site.node is node:
                    return site if site.plain and not site.shared else None
            if name not in ops.MOVES | ops.CASTS and name != "getitem":
                return None
            node = node.args[0]
        return None

    def left(self, kept: Tensor) -> int:
        """D' once the units that are not kept have left."""
        return int(kept[self.queries].sum(1).max())


def scale_amounts(
    scaled: Sequence[Scaled], kept: Tensor, held: dict[str, tuple[nn.Module, int]], shifts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What to add to weights and biases so that queries carry √(D'/D); parameter name -> amount (float64, old size).

    held: parameter name of every layer's weight and bias -> (layer, dimension of its units). shifts: what is added to
    a parameter before.
    """
    amounts: dict[str, Tensor] = {}
    for one in scaled:
        size = one.left(kept)
        if size == one.size or not one.site or one.rows is None:
            continue
        factor = (size / one.size) ** 0.5
        for name, (module, dim) in held.items():
            path, _, leaf = name.rpartition(".")
            if path != one.site:
                continue
            value = getattr(module, leaf).detach().to("cpu", torch.float64)
            value = value + shifts.get(name, torch.zeros(()))
            grow = torch.zeros(value.shape[dim], dtype=torch.float64)
            grow[one.rows] = factor - 1.0
            amounts[name] = amounts.get(name, torch.zeros(())) + value * grow.view(
                [-1 if d == dim else 1 for d in range(value.dim())]
            )
    return amounts
