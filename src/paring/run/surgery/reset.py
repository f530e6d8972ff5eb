"""What goes along when a network's weights are replaced in the middle of training: nothing of it remembers the old ones."""

from __future__ import annotations

import sys
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from paring.core import gates, unwrapped, wrappers
from paring.run.surgery.optimizer_memory import forget


@runtime_checkable
class Average(Protocol):
    """Something that averages over training steps."""

    def restart(self) -> None:
        """Forget all steps so far."""


def reset(net: nn.Module, other: object) -> None:
    """An optimizer forgets its state, an average starts again, a copy of `net` takes over its gates."""
    if isinstance(other, torch.optim.Optimizer):
        forget(other)
    elif isinstance(other, Average):
        other.restart()
    if isinstance(other, nn.Module):
        for part in wrappers(other):
            if isinstance(part, AveragedModel):
                part.n_averaged.zero_()
        for (_, _, mine), (_, _, theirs) in zip(gates(net), gates(unwrapped(other)), strict=True):
            theirs.load_state_dict(mine.state_dict())
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
