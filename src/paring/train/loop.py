"""`fit`: the only training loop in paring. It never asks which method it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from paring.core import Method, attached
from paring.data import Dataset
from paring.train.progress import Progress
from paring.train.recipe import Recipe
from paring.train.trainer import Fit, Trainer


def fit(
    net: nn.Module,
    method: Method,
    data: Dataset,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    label: str = "training",
    start: int = 0,
) -> Fit:
    """Train `net` with `method` on `data`.

    With a folder, every epoch ends with a checkpoint and a line in `metrics.jsonl`, and a run that was stopped goes on
    from there, bit for bit as if it had never stopped. Deterministic given the recipe's seed; the caller's random
    state is left alone. A method of several rounds trains `recipe` in each of them.

    Args:
        net: the network; gates go in, in place.
        method: `Dense()`, `L0(...)`, ...
        data: train, validation and test examples; the test part is not touched here.
        recipe: the numbers of training.
        folder: where checkpoints and metrics go; None keeps nothing on disk.
        progress: show a bar or lines on stderr, and in the end what was asked of the method and not done.
        label: the bar's title.
        start: optimizer step at which training begins, with the learning rate and the order of examples that it would
            have there: `net` holds the weights of a rewind point.

    Raises:
        Diverged: the loss is not finite any more.
        CheckpointError: the folder's checkpoints are damaged, or belong to another run.
    """
    trainer = Trainer(net, method, data, recipe, Path(folder) if folder is not None else None, start)
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        trainer.begin()
        with Progress(label, trainer.epochs, progress) as bar:
            while not trainer.done:
                bar.epoch(trainer.train_epoch())
    for message in attached(trainer.run.net).said if progress else ():
        print(f"{label}: {message}", file=sys.stderr, flush=True)
    return trainer.end()
