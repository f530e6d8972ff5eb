"""ignite: its `Checkpoint` of network, optimizer and trainer is all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from tests.integrations.training import STEPS, STOP, attached, check_resumed, examples, network

pytest.importorskip("ignite")
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver

pytestmark = CUT_SHORT


def trained(folder: Path, until: int, saved: Path | None = None) -> pr.Run:
    net = network()
    opt = torch.optim.Adam(net.parameters(), lr=3e-2)
    run = attached(net, opt)
    trainer = create_supervised_trainer(net, opt, F.cross_entropy)
    parts = {"model": net, "optimizer": opt, "trainer": trainer}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, Checkpoint(parts, DiskSaver(str(folder), require_empty=False))
    )

    x, y = examples(STEPS * 8)
    batches = list(zip(x.split(8), y.split(8), strict=True))

    @trainer.on(Events.ITERATION_STARTED)
    def _noise(engine: Engine) -> None:
        torch.manual_seed(engine.state.iteration)
        engine.state.batch = batches[engine.state.iteration - 1]

    @trainer.on(Events.ITERATION_COMPLETED)
    def _kill(engine: Engine) -> None:
        if engine.state.iteration == until:
            engine.terminate()

    if saved is not None:
        Checkpoint.load_objects(parts, torch.load(saved, weights_only=True))
    trainer.run(batches, max_epochs=1)
    return run


@pytest.mark.parametrize("stop", [5, STOP])
def test_a_killed_training_goes_on(tmp_path: Path, stop: int) -> None:
    straight = trained(tmp_path / "straight", STEPS)
    trained(tmp_path / "killed", stop)
    (saved,) = (tmp_path / "killed").glob(f"*_{stop}.pt")
    check_resumed(straight, trained(tmp_path / "resumed", STEPS, saved))
