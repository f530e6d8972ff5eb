"""Optimizer groups of a gated network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from paring.core import gates


def optimizer_groups(net: nn.Module, lr: float, weight_decay: float, gate_lr: float | None) -> list[dict[str, Any]]:
    """The weights, and the gates by learning rate and weight decay; see `Run.parameter_groups`."""
    groups: list[dict[str, Any]] = []
    gate_groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for _, _, gate in gates(net):
        key = (lr * gate.lr_scale if gate_lr is None else gate_lr, weight_decay if gate.decay else 0.0)
        for parameter in gate.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                gate_groups.setdefault(key, []).append(parameter)
    weights = [p for p in net.parameters() if id(p) not in seen]
    if weights:
        groups.append({"params": weights, "lr": lr, "weight_decay": weight_decay, "name": "weights"})
    for number, ((rate, decay), parameters) in enumerate(gate_groups.items()):
        groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": f"gates{number or ''}"})
    return groups


def check_groups(net: nn.Module, opt: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that would never move some gate.

    Raises:
        ValueError: it lacks the gates' parameters.
    """
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    lacking = [f"{name}.{kind}" for name, kind, gate in gates(net) if any(id(p) not in held for p in gate.parameters())]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(
            f"the optimizer does not hold the parameters of {len(lacking)} gates ({shown}), so they would never move; "
            f"build it after attach (and after fully_shard, which replaces parameters), with {type(opt).__name__}(run.parameter_groups(lr=...))"
        )
