"""What an interpretation finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from paring.analysis.attention_scale import Scaled
from paring.analysis.grids import Contraction, Grid, Layout, SliceTie
from paring.analysis.state import Alias, FeatureNorm, Loose, NormSite, Site
from paring.analysis.work import Product


@dataclass
class Interpretation:
    """All layer calls in order, and per group of units why it is kept (`kept`) or tied to others (`coupled`).

    `products`: arithmetic outside of the layers; `uncounted`: modules with arithmetic that is not known, and its name.
    `product_nodes`: where each of the products is. `zeros`: results that are zero for every input.
    Ids in sites and norms are group ids: the smallest id of all units that residual adds tie together. `rows` are those of
    layers and norms before they were tied, one for each row, and `cuts` which of these (and which group ids) a slice of an activation carries.
    `loose`: parameters and buffers outside of layers that shrink with units. `features`: norms over the units themselves;
    `mixed` says of the units that they read why these stay, unless they are zero.
    """

    units: int
    sites: list[Site] = field(default_factory=list)
    norms: list[NormSite] = field(default_factory=list)
    slopes: list[NormSite] = field(default_factory=list)
    features: list[FeatureNorm] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    coupled: dict[int, str] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    slice_ties: list[SliceTie] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)
    aliases: dict[str, Alias] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    product_nodes: dict[str, fx.Node] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)
    layouts: dict[fx.Node, list[Layout]] = field(default_factory=dict)
    names: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    cuts: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    loose: list[Loose] = field(default_factory=list)
    mixed: dict[int, str] = field(default_factory=dict)
    held_back: bool = False
    zeros: set[fx.Node] = field(default_factory=set)
