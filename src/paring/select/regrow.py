"""Drop and grow: exchange part of a layer's open weights for closed ones (SET, RigL).

    drop the k open weights of smallest magnitude, then open the k best of all that are closed now

RigL (Evci et al. 2020) grows where the gradient is largest, SET (Mocanu et al. 2018) at random. As in RigL's code k is
rounded down, and what was dropped a moment ago may come back, so k may be more than there is closed: at high densities
some of the dropped come back in any case. `fresh` names what was closed before and is open now. Their code adds noise of
1e-5 to the magnitudes, which decides between equal ones; here the first of equal ones stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.select.highest import top


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
    moving = min(count, int(torch.tensor(fraction, dtype=torch.float32) * count))  # down, in float32, as in RigL's code
    lowest = float("-inf")
    kept = top(magnitude.masked_fill(~mask, lowest), count - moving)
    new = kept | top(growth.masked_fill(kept, lowest), moving)
    return Exchange(new, new & ~mask)


def no_exchanges(name: str, every: int, end: float, steps: int) -> str | None:
    """What to say of a training in which a method would never exchange anything; None where it does.

    Args:
        name: of the method.
        every: optimizer steps between two exchanges.
        end: fraction of training after which there is none any more.
        steps: of training.
    """
    if every < end * steps:
        return None
    return (
        f"{name} will exchange nothing and keep its random mask: it exchanges every {every} steps, and ends at step "
        f"{end * steps:g} of {steps}. Give a smaller every=..., or train longer"
    )
