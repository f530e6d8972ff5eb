"""One small training that every framework does: a network, a method that shrinks it, batches without chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import paring as pr
from paring.core import STATE_KEY
from paring.testing import same_state

STEPS, CUT, STOP = 24, 12, 17
"""Optimizer steps in all, until the gates are held, and until the training is killed."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def method() -> pr.Method:
    return pr.Stack(
        pr.L0(price=pr.Budget(params=0.4), hold=1 - CUT / STEPS),
        pr.Shrink(every=4, multiple_of=1, saving=0.01, measure=False),
    )


def examples(count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def attached(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> pr.Run:
    return pr.attach(net, method(), examples(2)[0], optimizer=optimizer, steps=STEPS)


def check_resumed(straight: pr.Run, resumed: pr.Run) -> None:
    """Whether two trainings ended in the same, bit for bit, in networks that were cut."""
    assert straight.clock.step == resumed.clock.step == STEPS
    assert any(record["done"] for record in straight.shrinks)
    assert straight.shrinks == resumed.shrinks
    assert next(iter(straight.net.parameters())).shape[0] < 24
    assert STATE_KEY in straight.net.state_dict()
    assert same_state(straight.net.state_dict(), resumed.net.state_dict())
    assert same_state(straight.finish().state_dict(), resumed.finish().state_dict())
