"""Reduced runs: a table's experiments with fewer epochs or examples, to see that they work; their rows say what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from evidence.tables.derived import Sourced
from paring.cli.experiment import Experiment
from paring.core import Method, Stack
from paring.train import Recipe


def reduced(experiment: Experiment, epochs: int | None = None, examples: int = 0) -> Experiment:
    """The experiment with another number of epochs: milestones, rewind points and fine-tuning follow in proportion.

    With `examples`, it looks at no more than so many of each part of the data. Where there is no CUDA device, what asks for
    one runs on the CPU, in float32 and not compiled.
    """
    changed: dict[str, Any] = {"examples": examples}
    if epochs is not None:
        part = epochs / experiment.recipe.epochs
        changed |= {"recipe": _shorter(experiment.recipe, epochs), "method": _sooner(experiment.method, part)}
        if experiment.finetune:
            changed["finetune"] = _shorter(experiment.finetune, max(1, epochs // 2))
    if isinstance(experiment, Sourced):
        changed["source"] = reduced(experiment.source, epochs, examples)
    found = replace(experiment, **changed)
    tuned = found.finetune and _possible(found.finetune)
    return replace(found, recipe=_possible(found.recipe), finetune=tuned)


def check_devices(name: str, experiments: Iterable[Experiment]) -> None:
    """Refuse experiments that this machine has no device for.

    Raises:
        RuntimeError: some train on a CUDA device, and there is none.
    """
    if torch.cuda.is_available():
        return
    needy = [one for one in experiments if torch.device(one.recipe.device).type == "cuda"]
    if needy:
        raise RuntimeError(
            f"{len(needy)} runs of table {name!r} (the first: {needy[0].model} {needy[0].label}) train on a CUDA device, "
            "and there is none here. Run it on a machine that has one, or check it on this CPU with --epochs 1 --examples 1000 "
            "and --only"
        )


def _shorter(recipe: Recipe, epochs: int) -> Recipe:
    part = epochs / recipe.epochs
    milestones = tuple(max(1, round(part * mark)) for mark in recipe.milestones)
    return replace(recipe, epochs=epochs, warmup=0.0, milestones=milestones)


def _possible(recipe: Recipe) -> Recipe:
    """The recipe on a device that there is."""
    if torch.device(recipe.device).type == "cuda" and not torch.cuda.is_available():
        return replace(recipe, device="cpu", bf16=False, compile=False)
    return recipe


def _sooner(method: Method, part: float) -> Method:
    """The method with its rewind point, and the steps between two of its changes, in proportion."""
    if isinstance(method, Stack):
        return Stack(*(_sooner(one, part) for one in method.methods))
    changed: dict[str, Any] = {}
    if (point := getattr(method, "rewind", None)) is not None and part != 1:
        text = str(point)
        number = part * float(text.removesuffix("ep"))
        changed["rewind"] = f"{number:g}ep" if text.endswith("ep") else round(number)
    if isinstance(every := getattr(method, "every", None), int) and part < 1:
        changed["every"] = max(1, round(part * every))
    return replace(method, **changed)
