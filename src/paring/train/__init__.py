"""The training loop, evaluation, checkpoints and records."""

from paring.train import checkpoint
from paring.train.checkpoint import CheckpointError
from paring.train.ema import Ema
from paring.train.evaluate import evaluate
from paring.train.guard import Diverged
from paring.train.loop import fit
from paring.train.recipe import Recipe
from paring.train.record import Record, RecordError, read_metrics, write_atomic
from paring.train.trainer import CHECKPOINT, METRICS, POINT, ROUND, Fit, Trainer, round_state

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "POINT",
    "ROUND",
    "CheckpointError",
    "Diverged",
    "Ema",
    "Fit",
    "Recipe",
    "Record",
    "RecordError",
    "Trainer",
    "checkpoint",
    "evaluate",
    "fit",
    "read_metrics",
    "round_state",
    "write_atomic",
]
