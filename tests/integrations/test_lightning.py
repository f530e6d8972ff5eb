"""Lightning: the callback, and the Trainer's own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import paring as pr
from marks import CUT_SHORT
from tests.integrations.training import STEPS, STOP, attached, check_resumed, examples, network

pytest.importorskip("lightning.pytorch")
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from paring.integrations.lightning import ParingCallback

pytestmark = [
    CUT_SHORT,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*pkg_resources"),
]
PARTS = 2


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.run = attached(self.net)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        torch.manual_seed(index)  # neither the noise nor the place in the data is Lightning's to restore
        x, y = examples(PARTS * STEPS * 8)
        part = slice(8 * index, 8 * index + 8)
        return F.cross_entropy(self.net(x[part]), y[part])

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.net.parameters(), lr=3e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-2, total_steps=STEPS + 1)
        return [opt], [{"scheduler": schedule, "interval": "step"}]


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *given: Any) -> None:
        if trainer.global_step == self.step:
            raise MemoryError


def trained(folder: Path, until: int, saved: Path | None = None, steps: int = STEPS) -> pr.Run:
    module = Module()
    x, y = examples(PARTS * STEPS * 8)
    keep = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=PARTS,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, "log"),
        log_every_n_steps=4,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ParingCallback(module.run), keep, *([Kill(until)] if until < STEPS else [])],
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    if until < STEPS:
        with pytest.raises(MemoryError):
            trainer.fit(module, loader)
    else:
        trainer.fit(module, loader, ckpt_path=None if saved is None else str(saved))
    return module.run


@pytest.mark.parametrize("stop", [5, STOP])
def test_a_killed_training_goes_on(tmp_path: Path, stop: int) -> None:
    straight = trained(tmp_path / "straight", STEPS)
    killed = trained(tmp_path / "killed", stop)
    assert killed.clock.step == stop
    check_resumed(straight, trained(tmp_path / "resumed", STEPS, tmp_path / "killed" / f"step={stop - 1}.ckpt"))
    (log,) = (tmp_path / "straight").rglob("metrics.csv")
    header, *rows = log.read_text().splitlines()
    assert "paring/support_macs" in header
    assert "paring/multiplier_parameters" in header
    assert len(rows) == STEPS // 4


def test_another_length_is_said(tmp_path: Path) -> None:
    with pytest.warns(pr.ParingWarning, match=r"the Trainer takes 3 optimizer steps, and attach was told steps=24"):
        trained(tmp_path, STEPS, steps=3)
