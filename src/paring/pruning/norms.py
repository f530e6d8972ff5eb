"""BatchNorm statistics of a network whose units have changed, made anew from batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from paring.core.default_loss import Loss


def tracked(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The norms of `net` that keep statistics."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


@torch.no_grad()
def renew_statistics(net: nn.Module, batches: Iterable[Any], loss: Loss) -> None:
    """Running means and variances of all BatchNorms as the plain mean over these batches; all else stays in eval mode."""
    norms = tracked(net)
    if not norms:
        return
    modes, momenta = [(module, module.training) for module in net.modules()], [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    try:
        for batch in batches:
            loss(net, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


def has_batch_norm(net: nn.Module) -> bool:
    """Whether it has a BatchNorm; by this defaults differ between convolutional networks and transformers."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
