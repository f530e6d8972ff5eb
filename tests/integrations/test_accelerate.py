"""accelerate: `save_state` and `load_state` are all, with accumulation and a scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from tests.integrations.training import STEPS, STOP, attached, check_resumed, examples, network

accelerate = pytest.importorskip("accelerate")
pytestmark = CUT_SHORT
PARTS = 2


def trained(folder: Path, until: int, *, load: bool = False, late: bool = False) -> pr.Run:
    """Until a step of the optimizer; from what lies in the folder, or from the beginning. late: the run follows what `prepare` gave."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    net = network()
    opt: Any = torch.optim.AdamW(net.parameters(), lr=3e-2)
    schedule: Any = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-2, total_steps=STEPS + 1)
    run = attached(net, None if late else opt)
    model, opt, schedule = accelerator.prepare(net, opt, schedule)
    if late:
        run.follow(opt)
    if load:
        accelerator.load_state(str(folder))
    else:
        torch.manual_seed(3)
    x, y = examples(PARTS * STEPS * 8)
    for number in range(PARTS * run.clock.step, PARTS * until):
        part = slice(8 * number, 8 * number + 8)
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x[part]), y[part]))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
    assert run.clock.step == until
    if until < STEPS:
        accelerator.save_state(str(folder))
    return run


@pytest.mark.parametrize("late", [False, True])
def test_a_killed_training_goes_on(tmp_path: Path, late: bool) -> None:
    straight = trained(tmp_path, STEPS, late=late)
    for stop in (5, STOP):
        trained(tmp_path / str(stop), stop, late=late)
        check_resumed(straight, trained(tmp_path / str(stop), STEPS, load=True, late=late))


def test_mixed_precision_counts_steps_alike(tmp_path: Path) -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    net = network()
    opt: Any = torch.optim.SGD(net.parameters(), lr=0.1)
    run = attached(net, opt)
    model, opt = accelerator.prepare(net, opt)
    x, y = examples(8)
    for _ in range(4):
        opt.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        opt.step()
    assert run.clock.step == 4
    assert "mixed" not in (repr(net))
