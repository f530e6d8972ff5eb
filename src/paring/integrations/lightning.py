"""Lightning: `Trainer(callbacks=[ParingCallback(run)])`, and nothing else.

    run = paring.attach(module.net, method, example, steps=all_steps)
    trainer = Trainer(callbacks=[ParingCallback(run)])
    trainer.fit(module, loader)          # ckpt_path=... goes on bit for bit
    small = run.finish()

Attach before the Trainer makes the optimizers: in the module's `__init__` or `configure_model`. The checkpoints of the Trainer
hold all that is needed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from paring.integrations.lengths import say_length
from paring.run import Run

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            from pytorch_lightning import Callback
        else:
            from lightning.pytorch import Callback
    except ImportError as error:
        raise ImportError(
            "paring.integrations.lightning needs the package lightning: pip install 'paring[lightning]'"
        ) from error


class ParingCallback(Callback):
    """Lets a run follow an optimizer of the module, and tells the Trainer's loggers what happens (`Run.on_log`).

    Args:
        run: what `attach` returned for the module, or for a network in it.
        optimizer: which one of several that `configure_optimizers` returns.
    """

    def __init__(self, run: Run, *, optimizer: int = 0) -> None:
        self._run, self._optimizer = run, optimizer
        self._trainer: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Follow the optimizer, whose state is loaded by now."""
        self._run.follow(trainer.optimizers[self._optimizer])
        say_length(self._run, "Trainer", trainer.estimated_stepping_batches)
        if self._trainer is None:
            self._run.on_log(self._tell, every=max(1, trainer.log_every_n_steps))
        self._trainer = trainer

    def _tell(self, values: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(values, step)
