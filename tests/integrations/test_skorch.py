"""skorch, which gives every step a closure: `save_params` and `load_params` of network and optimizer are all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import paring as pr
from marks import CUT_SHORT
from tests.integrations.training import STEPS, STOP, attached, check_resumed, examples, network

pytest.importorskip("skorch")
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback

pytestmark = CUT_SHORT


class Noise(Callback):  # type: ignore[misc]
    def __init__(self, run: pr.Run) -> None:
        self.run = run

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool | None = None, **given: Any) -> None:
        if training:
            torch.manual_seed(self.run.clock.step)


def trained(folder: Path, until: int, *, load: bool = False) -> pr.Run:
    files = {
        "f_params": str(folder / "net.pt"),
        "f_optimizer": str(folder / "opt.pt"),
        "f_history": str(folder / "history.json"),
    }
    model = NeuralNetClassifier(
        network,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=3e-2,
        batch_size=8,
        max_epochs=1,
        train_split=None,
        iterator_train__shuffle=False,
        verbose=0,
    ).initialize()
    run = attached(model.module_, model.optimizer_)
    model.callbacks_.append(("noise", Noise(run)))
    if load:
        model.load_params(**files)
    x, y = examples(STEPS * 8)
    model.partial_fit(x[run.clock.step * 8 : until * 8], y[run.clock.step * 8 : until * 8])
    if until < STEPS:
        model.save_params(**files)
    return run


@pytest.mark.parametrize("stop", [5, STOP])
def test_a_killed_training_goes_on(tmp_path: Path, stop: int) -> None:
    straight = trained(tmp_path, STEPS)
    trained(tmp_path, stop)
    check_resumed(straight, trained(tmp_path, STEPS, load=True))
