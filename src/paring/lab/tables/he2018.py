"""He et al. 2018 (AMC), at its own constraint: half of the multiply-accumulates, by removing channels.

AMC searches the share of the channels of every layer by reinforcement learning, hundreds of trials with channels ranked by
magnitude, rounds widths to multiples of 8, and fine-tunes. Here gates decide: L0 on units with `Budget(macs=0.5,
multiple_of=8)`, one training. Against it the hand-made rule that AMC compares with: the same share of every layer, what is
smallest first, fine-tuned on the whole recipe (two trainings); the share is the largest, in whole percent, with at most
half of the MACs. "L0, twice as long" costs as much as that.

Channels are small by the magnitude of their weights, or by a factor of their own, the scale of a BatchNorm where there is
one. The first leaves a closed channel its bias or shift; where a padded convolution reads it that is no constant to fold
away, so some closed channels stay, and the network costs a little more than its open weights do.

Conv-4 at a quarter of its widths on Fashion-MNIST for a CPU, ResNet-20 on CIFAR-10 for a GPU, where the inner channels of the
residual blocks go. The rows hold the share of the weights that every layer keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from paring import rules
from paring.core import Method
from paring.lab.experiment import Experiment
from paring.lab.tables.frankle2020 import RECIPE as OPENLTH
from paring.lab.tables.table import Entry, Table
from paring.methods import IMP, L0, Budget, Dense, Slimming
from paring.train import Recipe

SHARE = 0.5
WIDTH = 8


@dataclass(frozen=True)
class Task:
    """One comparison.

    Args:
        data: the data set.
        recipe: of a training.
        layers: selector of the layers whose units may go.
        uniform: share of their units that costs at most half of the MACs.
    """

    data: str
    recipe: Recipe
    layers: str
    uniform: float


TASKS = {
    "conv4_16": Task(
        "fashion_mnist", Recipe(epochs=4, batch=100, lr=2e-3, schedule="cosine"), layers="!fc3", uniform=0.71
    ),
    "resnet20": Task("cifar10", OPENLTH, layers="stage*conv1", uniform=0.48),
}


def _methods(task: Task) -> Iterator[tuple[str, Method, Recipe]]:
    recipe = task.recipe
    gates = L0(price=Budget(macs=SHARE, multiple_of=WIDTH), at=f"units:{task.layers}")
    milestones = tuple(2 * mark for mark in recipe.milestones)
    yield "dense", Dense(), recipe
    yield "L0", gates, recipe
    yield "L0, twice as long", gates, replace(recipe, epochs=2 * recipe.epochs, milestones=milestones)
    uniform = IMP(
        prunings=1,
        rate=1 - task.uniform,
        rewind="none",
        at=f"weights:{task.layers}",
        allocation=rules.Uniform(),
        structure=rules.Units(),
    )
    yield "uniform by magnitude, fine-tuned", uniform, recipe
    scales = Slimming(density=task.uniform, rate=0.0, at=f"units:{task.layers}", allocation=rules.Uniform())
    yield "uniform by scale, fine-tuned", scales, recipe


def _entries(seed: int) -> list[Entry]:
    return [
        Entry(label, Experiment(model, task.data, method, replace(recipe, seed=seed)))
        for model, task in TASKS.items()
        for label, method, recipe in _methods(task)
    ]


HE = Table("he2018", "half of the MACs: gates against the same share of every layer (AMC's constraint)", _entries)
