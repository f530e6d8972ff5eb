"""Sparsification at equal cost and equal tuning: Continuous Sparsification, L0, gradual pruning and RigL on LeNet-300-100.

Every method gets the time of four trainings of `savarese2020-small` (1,200 steps each) and, for each density, the same number
of trainings to tune the one setting that its paper leaves most open (`savarese2020-tuning`): four values, one seed, on
10,000 validation examples of MNIST. Only L0 had more, four or five values by two seeds (`savarese2020-starts`). The lowest
validation error is taken (`TUNED`), on Fashion-MNIST as well, and trained on all training examples (`savarese2020-equal`);
test examples are looked at there alone. The dense network has ten seeds, since every method is held against it.

The settings: the learning rate of the logits of Continuous Sparsification as a multiple of the weights'; the probability with
which L0 keeps a gate at first; where the ramp of gradual pruning ends, as a fraction of training; how many steps lie between two
exchanges of RigL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from evidence.tables.savarese2020 import LONG, SCALES, gates
from evidence.tables.savarese2020_starts import HELD_OUT
from evidence.tables.table import Entry, Table
from paring import select
from paring.cli.experiment import Experiment
from paring.core import Method
from paring.methods import GMP, ContinuousSparsification, Dense, RigL

MODEL = "lenet_300_100"
DENSITIES = (0.1, 0.02, 0.005)
SEEDS, DENSE_SEEDS = 5, 10


@dataclass(frozen=True)
class Way:
    """One method with one setting to tune.

    Args:
        method: by density and setting.
        setting: what the number is, in words.
        candidates: by density; none for a setting that another table chose.
        trainings: of the recipe that follow one another in one run; the others are one training of `LONG` times its length.
    """

    method: Callable[[float, float], Method]
    setting: str
    candidates: Mapping[float, tuple[float, ...]]
    trainings: int = 1


def _everywhere(*values: float) -> dict[float, tuple[float, ...]]:
    return dict.fromkeys(DENSITIES, values)


def _searched(density: float, times: float) -> Method:
    return ContinuousSparsification(density=density, rewind="1ep", gate_lr=times)


def _kept(density: float, times: float) -> Method:
    return ContinuousSparsification(density=density, ticket="prune", flat=False, gate_lr=times)


def _ramped(density: float, end: float) -> Method:
    return GMP(density=density, ramp=(0.0, end), allocation=select.Global())


def _exchanged(density: float, every: float) -> Method:
    return RigL(density=density, every=round(every))


_LOGITS = "logits at {:g} × the rate"
WAYS: dict[str, Way] = {
    "CS, ticket retrained": Way(_searched, _LOGITS, _everywhere(1, 3, 10, 30), trainings=LONG),
    "CS, weights kept": Way(_kept, _LOGITS, _everywhere(1, 3, 10, 30), trainings=LONG),
    "L0": Way(gates, "gates from {:g}", _everywhere()),
    "GMP": Way(_ramped, "ramp until {:g}", _everywhere(0.25, 0.5, 0.75, 0.9)),
    "RigL": Way(_exchanged, "exchange every {:g} steps", _everywhere(30, 100, 200, 400)),
}
TUNED: dict[str, dict[float, float]] = {
    "CS, ticket retrained": {0.1: 10, 0.02: 3, 0.005: 10},
    "CS, weights kept": {0.1: 3, 0.02: 10, 0.005: 10},
    "L0": SCALES[MODEL].long_starts,
    "GMP": {0.1: 0.5, 0.02: 0.75, 0.005: 0.5},
    "RigL": {0.1: 30, 0.02: 30, 0.005: 100},
}
"""The lowest validation error of `savarese2020-tuning`, by method and density."""


def _experiment(name: str, density: float, setting: float, seed: int, data: str, validation: int = 0) -> Experiment:
    way, recipe = WAYS[name], SCALES[MODEL].recipe
    epochs = recipe.epochs if way.trainings == LONG else LONG * recipe.epochs
    return Experiment(
        MODEL, data, way.method(density, setting), replace(recipe, seed=seed, epochs=epochs), validation=validation
    )


def _tuning(seed: int) -> list[Entry]:
    return [
        Entry(
            f"{name}, {way.setting.format(setting)}: {100 * density:g} %",
            _experiment(name, density, setting, seed, "mnist", HELD_OUT),
        )
        for name, way in WAYS.items()
        for density in DENSITIES
        for setting in way.candidates[density]
    ]


def _equal(seed: int) -> list[Entry]:
    recipe = SCALES[MODEL].recipe
    longer = replace(recipe, epochs=LONG * recipe.epochs)
    return [
        entry
        for data in ("mnist", "fashion_mnist")
        for entry in (
            Entry("dense", Experiment(MODEL, data, Dense(), replace(longer, seed=seed))),
            *(
                Entry(f"{name}: {100 * density:g} %", _experiment(name, density, TUNED[name][density], seed, data))
                for name in (WAYS if seed < SEEDS else ())
                for density in DENSITIES
            ),
        )
    ]


TUNING = Table(
    "savarese2020-tuning", "one setting of every method, chosen on validation examples, for -equal", _tuning, seeds=1
)
EQUAL = Table(
    "savarese2020-equal",
    "CS, L0, GMP and RigL at equal cost, each tuned by as many trainings",
    _equal,
    seeds=DENSE_SEEDS,
)
