"""The training loop, evaluation, checkpoints and records."""

from paring.train import checkpoint
from paring.train.checkpoint import CheckpointError
from paring.train.ema import Ema
from paring.train.evaluate import evaluate
from paring.train.guard import Diverged
from paring.train.loop import fit
from paring.train.recipe import Recipe
from paring.train.record import Record, write_atomic
from paring.train.trainer import CHECKPOINT, METRICS, ROUND, Fit, Trainer

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "ROUND",
    "CheckpointError",
    "Diverged",
    "Ema",
    "Fit",
    "Recipe",
    "Record",
    "Trainer",
    "checkpoint",
    "evaluate",
    "fit",
    "write_atomic",
]
