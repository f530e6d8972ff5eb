"""He et al. 2018 (AMC), at its own constraint: half of the multiply-accumulates, by removing channels.

AMC searches the share of the channels of every layer by reinforcement learning, hundreds of trials with channels ranked by
magnitude, rounds widths to multiples of 8, and fine-tunes. Here gates decide: L0 on units with `Budget(macs=0.5,
multiple_of=8)`, one training, and then a whole training of what is left as fine-tuning. Against it the hand-made rule that
AMC compares with: the same share of every layer, what is smallest first, fine-tuned in the same way; the share is the
largest, in whole percent, with at most half of the MACs. "Dense, twice as long" has the cost of the fine-tuned networks.
"L0's widths" are AMC's way with gates in place of its search: the widths that L0 ended with, on the trained dense network,
fine-tuned; a third training pays for the search.

Channels are small by the magnitude of their weights, or by a factor of their own, the scale of a BatchNorm where there is
one. The first leaves a closed channel its bias or shift; where a padded convolution reads it that is no constant to fold
away, so some closed channels stay, and the network costs a little more than its open weights do.

Conv-4 at a quarter of its widths on Fashion-MNIST for a CPU, ResNet-20 on CIFAR-10 for a GPU, where the inner channels of the
residual blocks go. The rows hold the share of the weights that every layer keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from evidence.tables.derived import Narrowed
from evidence.tables.frankle2020 import RECIPE as OPENLTH
from evidence.tables.table import Entry, Table
from paring import select
from paring.cli.experiment import Experiment
from paring.methods import IMP, L0, Budget, Dense, Slimming
from paring.train import Recipe

SHARE = 0.5
WIDTH = 8
KEEP = 0.9  # of a gate at first, chosen on Conv-4's validation split (0.5: 9.1 % there, 0.9: 7.8 %)


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
        "fashion_mnist", Recipe(epochs=2, batch=50, lr=2e-3, schedule="cosine"), layers="!fc3", uniform=0.71
    ),
    "resnet20": Task("cifar10", OPENLTH, layers="stage*conv1", uniform=0.48),
}


def _experiments(model: str, task: Task, recipe: Recipe) -> Iterator[tuple[str, Experiment]]:
    dense = Experiment(model, task.data, Dense(), recipe)
    yield "dense", dense
    milestones = tuple(2 * mark for mark in recipe.milestones)
    longer = replace(recipe, epochs=2 * recipe.epochs, milestones=milestones)
    yield "dense, twice as long", replace(dense, recipe=longer)
    price = Budget(macs=SHARE, multiple_of=WIDTH)
    gates = replace(dense, method=L0(price=price, at=f"units:{task.layers}", keep=KEEP))
    yield "L0", gates
    yield "L0, fine-tuned", replace(gates, finetune=recipe)
    uniform = IMP(
        prunings=1,
        rate=1 - task.uniform,
        retrain="none",
        at=f"weights:{task.layers}",
        allocation=select.Uniform(),
        structure=select.Units(),
    )
    yield "uniform by magnitude, fine-tuned", replace(dense, method=uniform)
    scales = Slimming(density=task.uniform, rate=0.0, at=f"units:{task.layers}", allocation=select.Uniform())
    yield "uniform by scale, fine-tuned", replace(dense, method=scales)
    yield "L0's widths by scale, fine-tuned", Narrowed(model, task.data, scales, recipe, source=gates)


def _entries(seed: int) -> list[Entry]:
    return [
        Entry(label, experiment)
        for model, task in TASKS.items()
        for label, experiment in _experiments(model, task, replace(task.recipe, seed=seed))
    ]


HE = Table("he2018", "half of the MACs: gates against the same share of every layer (AMC's constraint)", _entries)
