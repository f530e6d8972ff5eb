"""Evaluation with the test-time gates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from paring.data import Split


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, *, chunk: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and error in percent on `split`, in eval mode; the net's mode is put back after.

    Raises:
        ValueError: the split is empty.
    """
    if len(split) == 0:
        raise ValueError(
            "cannot evaluate on an empty split: ask for a validation set with validation=... when loading the data"
        )
    was_training = net.training
    net.eval()
    loss = torch.zeros((), device=split.x.device, dtype=torch.float64)
    wrong = torch.zeros((), device=split.x.device, dtype=torch.int64)
    try:
        for x, y in zip(split.x.split(chunk), split.y.split(chunk), strict=True):
            out = net(x).float()
            loss += F.cross_entropy(out, y, reduction="sum").double()
            wrong += (out.argmax(1) != y).sum()
    finally:
        net.train(was_training)
    return float(loss) / len(split), 100.0 * float(wrong) / len(split)
