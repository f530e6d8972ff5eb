"""The Trainer of transformers: the callback, an optimizer of one's own, and its own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring.testing import same_state
from tests.integrations.training import STEPS, STOP, attached, check_resumed, examples, network

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import transformers

from paring.integrations.transformers import ParingCallback

pytestmark = CUT_SHORT


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Kill(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def trainer_of(folder: Path, model: nn.Module, data: Any, until: int, callbacks: Any, **given: Any) -> Any:
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-2,
        max_grad_norm=1.0,
        save_steps=1,
        save_total_limit=1,
        logging_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(model, args, train_dataset=data, callbacks=[*callbacks, Kill(until)], **given)


def trained(folder: Path, until: int, *, load: bool = False, own: bool = False) -> tuple[pr.Run, Any]:
    """own: the optimizer and its scheduler are handed to the Trainer."""
    model = Model()
    opt = torch.optim.Adam(model.parameters(), lr=3e-2) if own else None
    schedule = None if opt is None else torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    run = attached(model.net, opt)
    x, y = examples(STEPS * 16)
    data = [{"x": one, "labels": label} for one, label in zip(x, y, strict=True)]
    callbacks = [] if own else [ParingCallback(run, every=4)]
    trainer = trainer_of(folder, model, data, until, callbacks, optimizers=(opt, schedule))
    trainer.train(resume_from_checkpoint=load)
    return run, trainer


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("stop", [5, STOP])
def test_a_killed_training_goes_on(tmp_path: Path, stop: int, own: bool) -> None:
    straight, trainer = trained(tmp_path / "straight", STEPS, own=own)
    killed, _ = trained(tmp_path / "killed", stop, own=own)
    assert killed.clock.step == stop
    assert len(trainer.optimizer.param_groups) == (1 if own else 2)  # with decay and without, as it makes them
    resumed, _ = trained(tmp_path / "killed", STEPS, load=True, own=own)
    check_resumed(straight, resumed)
    if not own:
        told = [entry["step"] for entry in trainer.state.log_history if "paring/support_macs" in entry]
        assert told == list(range(4, STEPS + 1, 4))


def test_a_model_of_the_library(tmp_path: Path) -> None:
    """Saved by `save_pretrained`, which writes safetensors."""

    def bert(folder: Path, until: int, *, load: bool = False) -> pr.Run:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=8,
            num_labels=2,
        )
        model = transformers.BertForSequenceClassification(config)
        words = torch.randint(20, (STEPS * 16, 6), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": one, "labels": one[0] % 2} for one in words]
        layers = pr.L0(price=pr.Budget(params=0.8), at="units:*intermediate*", hold=0.5)
        run = pr.attach(model, layers, {"input_ids": words[:2]}, steps=STEPS)
        trainer_of(folder, model, data, until, [ParingCallback(run)]).train(resume_from_checkpoint=load)
        return run

    straight = bert(tmp_path / "straight", STEPS)
    bert(tmp_path / "killed", STOP)
    resumed = bert(tmp_path / "killed", STEPS, load=True)
    assert straight.clock == resumed.clock
    assert same_state(straight.net.state_dict(), resumed.net.state_dict())
