"""What happens to a network in training, as the numbers that loggers take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paring.analysis import CaptureError
from paring.core import Clock, attached
from paring.cost import Cost
from paring.gates import expected, support


@torch.no_grad()
def log_values(
    net: nn.Module, clock: Clock, records: list[dict[str, Any]], penalty: Tensor | None, cost: Callable[..., Cost]
) -> dict[str, float]:
    """The values that `Run.on_log` tells of.

    Args:
        net: the attached network.
        clock: where training stands.
        records: of its cuts.
        penalty: now; None for none.
        cost: of the network, given what to ask gates (`Run.cost`).
    """
    found = {
        "round": float(clock.round),
        "parameters": float(sum(p.numel() for p in net.parameters())),
        "cuts": float(sum(bool(record["done"]) for record in records)),
        "penalty": 0.0 if penalty is None else float(penalty),
    }
    try:
        dense = cost()
        for name, ask in (("support", support), ("expected", expected)):
            now = cost(ask)
            for what in ("parameters", "macs"):
                found[f"{name}_{what}"] = float(getattr(now, what)) / max(float(getattr(dense, what)), 1.0)
    except CaptureError:
        pass  # a network that cannot be captured has no costs, and a method that needs none still trains
    multipliers = attached(net).state.multipliers
    for places, numbers in multipliers.items():
        for what, number in numbers.items():
            found[f"multiplier_{what}{f'_{places}' if len(multipliers) > 1 else ''}"] = float(number)
    return {f"paring/{name}": value for name, value in found.items()}
