"""Savarese, Silva, Maire 2020 (Continuous Sparsification) at the scale of a CPU, with the comparisons that its reviewers asked for.

LeNet-300-100, Conv-4 and Conv-6 (at a quarter of their widths), on MNIST and Fashion-MNIST; all weights of all layers can
go; every method at the same densities, and every training on the same recipe: Adam at 1e-3 with a cosine schedule, 8
epochs for LeNet-300-100, 4 for the others. Methods of several rounds repeat the recipe: IMP prunes 20 % a round and
rewinds weights and schedule to epoch 1 ("IMP-C" rewinds nothing), Continuous Sparsification searches in 3 rounds with the
density given, and trains its ticket from epoch 1 ("CS") or goes on with its weights ("CS, weights kept").

Network slimming closes units, so its densities are shares of the units. STR has no density to ask for; it is run with
several weight decays, which decide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paring import rules
from paring.core import Method
from paring.lab.experiment import Experiment
from paring.lab.tables.table import Entry, Table
from paring.methods import GMP, IMP, L0, STR, AtInit, Budget, ContinuousSparsification, Dense, RigL, Slimming
from paring.train import Recipe

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
UNITS = (0.8, 0.6, 0.4, 0.2, 0.1)
DECAYS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
EPOCHS = {"lenet_300_100": 8, "conv4_16": 4, "conv6_16": 4}
_RECIPE = Recipe(batch=100, lr=1e-3, schedule="cosine")
_PRUNINGS = 24  # 0.8^24 is 0.5 %
_ONE: dict[str, Any] = {"to": "1ep"}


def _at(density: float) -> dict[str, Method]:
    """Every method that can be asked for a density."""
    return {
        "CS": ContinuousSparsification(density=density, **_ONE),
        "CS, weights kept": ContinuousSparsification(density=density, ticket="prune", flat=False),
        "L0": L0(price=Budget(params=density), at="weights"),
        "GMP": GMP(density=density),
        "GMP, one threshold": GMP(density=density, allocation=rules.Global()),
        "RigL": RigL(density=density),
        "SNIP": AtInit(score="snip", density=density),
        "random, ERK": AtInit(score="random", density=density, allocation=rules.ErdosRenyi()),
    }


def _small(seed: int) -> list[Entry]:
    found = []
    for model, epochs in EPOCHS.items():
        for data in ("mnist", "fashion_mnist"):
            recipe = replace(_RECIPE, epochs=epochs, seed=seed)
            methods: list[tuple[str, Method, Recipe]] = [
                ("dense", Dense(), recipe),
                ("IMP", IMP(prunings=_PRUNINGS, **_ONE), recipe),
                ("IMP-C", IMP(prunings=_PRUNINGS, rewind="none"), recipe),
            ]
            methods += [
                (f"{name}: {100 * density:g} %", method, recipe)
                for density in DENSITIES
                for name, method in _at(density).items()
            ]
            methods += [(f"slimming: {100 * share:g} %", Slimming(density=share), recipe) for share in UNITS]
            methods += [(f"STR: {decay:g}", STR(s_init=-10.0), replace(recipe, weight_decay=decay)) for decay in DECAYS]
            found += [Entry(label, Experiment(model, data, method, given)) for label, method, given in methods]
    return found


SMALL = Table(
    "savarese2020-small", "accuracy against density: CS, IMP, L0, GMP, RigL, SNIP, STR, slimming, random", _small
)
