"""Savarese, Silva, Maire 2020 (Continuous Sparsification) at the scale of a CPU, with the comparisons that its reviewers asked for.

LeNet-300-100 and Conv-4 at a quarter of its widths, on MNIST and Fashion-MNIST; all weights of all layers can go. Every
training of a network has the same recipe, 1,200 steps of Adam with a cosine schedule: 4 epochs of batches of 200 at 4e-3
for LeNet-300-100, 1 epoch of batches of 50 at 2e-3 for Conv-4. Learning rates, STR's thresholds and where L0's gates begin
(`savarese2020-starts`) were chosen on MNIST's validation split. Methods of several rounds repeat the recipe: IMP prunes 20 %
a round, 21 times (0.92 % stay), and rewinds weights and schedule to step 300 of LeNet-300-100 and 600 of Conv-4 ("IMP-C"
rewinds nothing); Continuous Sparsification searches in 3 rounds with the density given, and trains its ticket from there
("CS") or goes on with its weights ("CS, weights kept"). So CS costs about four trainings; "16 epochs" (LeNet-300-100) and
"4 epochs" (Conv-4) are L0, GMP and the dense network at that cost.

Network slimming closes units, so its densities are shares of the units. STR has no density to ask for; its initial
thresholds decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from evidence.tables.table import Entry, Table
from paring import select
from paring.cli.experiment import Experiment
from paring.core import Method
from paring.methods import GMP, IMP, L0, STR, AtInit, Budget, ContinuousSparsification, Dense, RigL, Slimming
from paring.train import Recipe

PRUNINGS = 21
LONG = 4  # trainings that the search and the ticket of Continuous Sparsification cost together
STR_DECAY = 1e-4


@dataclass(frozen=True)
class Scale:
    """What one network is trained for.

    Args:
        recipe: of every training.
        rewind: rewind point.
        starts: densities of every method that can be asked for one, and the probability with which L0 keeps a gate at first.
        long_starts: densities of "CS, weights kept" and of the trainings that are `LONG` times as long, with L0's start there.
        units: shares of the units for network slimming.
        thresholds: initial parameters of STR's thresholds.
    """

    recipe: Recipe
    rewind: str
    starts: dict[float, float]
    long_starts: dict[float, float]
    units: tuple[float, ...]
    thresholds: tuple[float, ...]


_ADAM = Recipe(schedule="cosine")
SCALES = {
    "lenet_300_100": Scale(
        replace(_ADAM, epochs=4, batch=200, lr=4e-3),
        rewind="1ep",
        starts={0.5: 0.99, 0.2: 0.95, 0.1: 0.8, 0.05: 0.8, 0.02: 0.5, 0.01: 0.1, 0.005: 0.1},
        long_starts={0.1: 0.8, 0.02: 0.2, 0.005: 0.1},
        units=(0.8, 0.6, 0.4, 0.2, 0.1),
        thresholds=(-6.0, -4.0, -3.0, -2.5, -2.0),
    ),
    "conv4_16": Scale(
        replace(_ADAM, epochs=1, batch=50, lr=2e-3),
        rewind="0.5ep",
        starts={0.5: 0.99, 0.2: 0.95, 0.05: 0.8, 0.01: 0.5, 0.005: 0.5},
        long_starts={0.05: 0.8},
        units=(0.5, 0.25),
        thresholds=(-4.0, -2.5),
    ),
}


def gates(density: float, keep: float) -> L0:
    """L0 at the weights for a density; a gate is kept with probability `keep` at first."""
    return L0(price=Budget(params=density), at="weights", keep=unless_default(keep))


def unless_default(keep: float) -> float | None:
    """One half is what L0 begins with from scratch, and what is at its default names no run."""
    return None if keep == 0.5 else keep


def _asked(density: float, rewind: str, keep: float) -> dict[str, Method]:
    """Every method that can be asked for a density and trains once, or searches and trains its ticket (from `rewind`) once."""
    return {
        "CS": ContinuousSparsification(density=density, rewind=rewind),
        "L0": gates(density, keep),
        "GMP": GMP(density=density),
        "GMP, one threshold": GMP(density=density, allocation=select.Global()),
        "RigL": RigL(density=density),
        "SNIP": AtInit(score="snip", density=density),
        "random, ERK": AtInit(score="random", density=density, allocation=select.ErdosRenyi()),
    }


def _methods(scale: Scale) -> Iterator[tuple[str, Method, Recipe]]:
    recipe = scale.recipe
    yield "dense", Dense(), recipe
    yield "IMP", IMP(prunings=PRUNINGS, rewind=scale.rewind), recipe
    for density, keep in scale.starts.items():
        for name, method in _asked(density, scale.rewind, keep).items():
            yield f"{name}: {100 * density:g} %", method, recipe
    for share in scale.units:
        yield f"slimming: {100 * share:g} %", Slimming(density=share), recipe
    for threshold in scale.thresholds:
        yield f"STR: {threshold:g}", STR(s_init=threshold), replace(recipe, weight_decay=STR_DECAY)
    longer = replace(recipe, epochs=LONG * recipe.epochs)
    yield f"dense, {longer.epochs} epochs", Dense(), longer
    for density, keep in scale.long_starts.items():
        kept = ContinuousSparsification(density=density, ticket="prune", flat=False)
        yield f"CS, weights kept: {100 * density:g} %", kept, recipe
        for name in ("L0", "GMP, one threshold"):
            yield (
                f"{name}, {longer.epochs} epochs: {100 * density:g} %",
                _asked(density, scale.rewind, keep)[name],
                longer,
            )
    yield "IMP-C", IMP(prunings=PRUNINGS, retrain="none"), recipe


def _small(seed: int) -> list[Entry]:
    return [
        Entry(label, Experiment(model, data, method, replace(recipe, seed=seed)))
        for model, scale in SCALES.items()
        for data in ("mnist", "fashion_mnist")
        for label, method, recipe in _methods(scale)
    ]


SMALL = Table(
    "savarese2020-small", "accuracy against density: CS, IMP, L0, GMP, RigL, SNIP, STR, slimming, random", _small
)
