"""What tells that a training has diverged, before a checkpoint is written of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Diverged(RuntimeError):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""


def bad_loss(losses: Sequence[Tensor], step: int) -> str:
    """Which of the last steps' losses, up to that of `step`, is the first that is not finite; empty when all are."""
    bad = (~torch.stack(tuple(losses)).isfinite()).nonzero()
    if not len(bad):
        return ""
    index = int(bad[0])
    return f"the loss became {float(losses[index])} at step {step - len(losses) + index + 1}"


def bad_parameter(net: nn.Module, step: int) -> str:
    """Which parameter the last step, `step`, broke; empty when all are finite."""
    broken = next((name for name, p in net.named_parameters() if not bool(p.isfinite().all())), None)
    return "" if broken is None else f"'{broken}' is not finite any more after step {step}"
