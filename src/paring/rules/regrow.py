"""Drop and grow: exchange part of a layer's open weights for closed ones (SET, RigL).

    drop the k open weights of smallest magnitude, then open the k best of all that are closed now

RigL (Evci et al. 2020) grows where the gradient is largest, SET (Mocanu et al. 2018) at random. What was dropped a moment
ago may come back, as in RigL's code; `fresh` names what was closed before and is open now.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paring.rules.highest import top


@dataclass(frozen=True)
class Exchange:
    """New masks of one layer.

    Attributes:
        mask: what is open now; as many as before.
        fresh: what is open now and was closed before.
    """

    mask: Tensor
    fresh: Tensor


def exchange(mask: Tensor, magnitude: Tensor, growth: Tensor, fraction: float) -> Exchange:
    """Exchange this fraction of the open weights.

    Args:
        mask: boolean, what is open.
        magnitude: of the weights, of the same shape.
        growth: higher is opened first; of the same shape.
        fraction: share of the open weights to exchange, in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"exchange(fraction={fraction}): must lie in [0, 1]")
    count = int(mask.sum())
    moving = min(round(fraction * count), mask.numel() - count)
    lowest = float("-inf")
    kept = top(magnitude.masked_fill(~mask, lowest), count - moving)
    new = kept | top(growth.masked_fill(kept, lowest), moving)
    return Exchange(new, new & ~mask)
