"""Magnitude pruning with retraining, for compressors that prune by themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring import select
from paring.compression.tensors import weights_of
from paring.compression.training import Descent, Training


@torch.no_grad()
def prune(net: nn.Module, density: float, allocation: select.Allocation) -> dict[str, Tensor]:
    """Set the smallest weights to zero; the masks of what stays, by name.

    Args:
        net: changed in place.
        density: share of the weights that stays, in (0, 1].
        allocation: how the tensors share it.
    """
    weights = weights_of(net)
    masks = select.masks(select.magnitude(weights), density, allocation, select.Weights())
    for name, mask in masks.items():
        weights[name].mul_(mask)
    return dict(masks)


def retrain(
    net: nn.Module,
    masks: dict[str, Tensor],
    training: Training,
    epochs: float,
    *,
    lr: float | None = None,
    first: int = 0,
) -> None:
    """Train on with these weights held at zero.

    Args:
        net: changed in place.
        masks: what may move, by name.
        training: data and loss.
        epochs: how long.
        lr: first learning rate, the training's by default.
        first: number of the first epoch.
    """
    weights = {name: net.get_parameter(name) for name in masks}

    def before() -> None:
        for name, weight in weights.items():
            if weight.grad is not None:
                weight.grad.mul_(masks[name])

    trained = [p for p in net.parameters() if p.requires_grad]
    Descent(training, trained, epochs, lr=lr, first=first).run(net, before=before)
