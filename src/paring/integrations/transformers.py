"""The Trainer of Hugging Face transformers: `Trainer(..., callbacks=[ParingCallback(run)])`, and nothing else.

    run = paring.attach(model, method, example, steps=all_steps)
    trainer = Trainer(model, args, train_dataset=..., callbacks=[ParingCallback(run)])
    trainer.train()          # resume_from_checkpoint=True goes on bit for bit
    small = run.finish()

The checkpoints of the Trainer hold all that is needed. A model that was told its sizes by a config is saved small with
`paring.save`, as its config knows only the full ones.
"""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "paring.integrations.transformers needs the package transformers: pip install 'paring[transformers]'"
    ) from error

from paring.integrations.lengths import say_length
from paring.run import Run


class ParingCallback(TrainerCallback):
    """Lets a run follow the optimizer that the Trainer makes.

    The values of `Run.on_log` go into the Trainer's log history.

    Args:
        run: what `attach` returned for the Trainer's model.
        every: optimizer steps between two entries of the log history; None makes none.
    """

    def __init__(self, run: Run, *, every: int | None = 100) -> None:
        self._run, self._every = run, every
        self._history: list[dict[str, Any]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Follow the optimizer, whose state is loaded by now."""
        self._run.follow(given["optimizer"])
        say_length(self._run, "Trainer", state.max_steps)
        if self._every is not None and self._history is None:
            self._run.on_log(self._note, every=self._every)
        self._history = state.log_history

    def _note(self, values: dict[str, float], step: int) -> None:
        assert self._history is not None
        self._history.append({**values, "step": step})
