"""Where the gates of L0 begin in `savarese2020-small`, chosen on 10,000 validation examples of MNIST.

L0 with a budget has one setting that decides much and that its paper leaves open: the probability with which a gate is kept
at first. Low, weights have little to learn in; high, few can go within a short training. So every density, network and
length of training gets its own, `Scale.starts` and `Scale.long_starts`: the lowest mean validation error here, or the default
0.5 where no start leads above chance. Fashion-MNIST takes MNIST's choice. The lower the density, the lower the starts that are
tried.
"""

from __future__ import annotations

from dataclasses import replace

from evidence.tables.savarese2020 import LONG, SCALES, gates
from evidence.tables.table import Entry, Table
from paring.cli.experiment import Experiment

HELD_OUT = 10_000


def candidates(density: float) -> tuple[float, ...]:
    """The starts that are tried for a density."""
    return (0.5, 0.8, 0.95, 0.99) if density >= 0.1 else (0.1, 0.2, 0.5, 0.8, 0.95)


def _starts(seed: int) -> list[Entry]:
    found = []
    for model, scale in SCALES.items():
        longer = replace(scale.recipe, epochs=LONG * scale.recipe.epochs)
        for recipe, densities, long in (
            (scale.recipe, scale.starts, ""),
            (longer, scale.long_starts, f", {longer.epochs} epochs"),
        ):
            keeps = sorted({keep for density in densities for keep in candidates(density)})
            found += [
                Entry(
                    f"L0 from {keep:g}{long}: {100 * density:g} %",
                    Experiment(model, "mnist", gates(density, keep), replace(recipe, seed=seed), validation=HELD_OUT),
                )
                for keep in keeps
                for density in densities
                if keep in candidates(density)
            ]
    return found


STARTS = Table("savarese2020-starts", "where L0's gates begin, chosen on validation examples", _starts, seeds=2)
