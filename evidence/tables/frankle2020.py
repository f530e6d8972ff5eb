"""Frankle, Dziugaite, Roy, Carbin 2020 (lottery tickets with rewinding) and Renda, Frankle, Carbin 2020, on CIFAR-10.

Settings of OpenLTH: 160 epochs of SGD with momentum 0.9, 0.1 divided by 10 at 80 and 120, batches of 128, weight decay 1e-4,
random crops and flips, scales of BatchNorms from (0, 1); 20 % of the open weights go in each of 12 rounds of ResNet-20 (6.9 %
stay) and 20 of VGG-16 (1.2 %), one threshold for all layers; VGG-16 keeps its classifier. Weights go back to epoch 2 (step 782);
where the learning rate is rewound, or stays at its last value for fine-tuning, the whole schedule is repeated. Controls:
other initial weights under the masks of rounds 4, 8 and 12 (41 %, 17 % and 7 %), and masks with the same layer-wise
densities at random places. Continuous Sparsification is asked for the densities of these rounds on the same recipe.

The runs need a CUDA device, where they train in bfloat16 and compiled.

Quoted: Renda et al.'s released runs of ResNet-20, iterative, 182 epochs, weights rewound to epoch 12: medians of the pruned
networks, means of the dense ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evidence.tables.derived import Isolated
from evidence.tables.table import Entry, Table
from paring.cli.experiment import Experiment
from paring.cli.tickets.retrain import CONTROLS
from paring.core import Method
from paring.methods import IMP, ContinuousSparsification, Dense
from paring.train import Recipe

RECIPE = Recipe(
    epochs=160,
    batch=128,
    lr=0.1,
    optimizer="sgd",
    weight_decay=1e-4,
    schedule="step",
    milestones=(80, 120),
    crop=4,
    flip=True,
    device="cuda",
    bf16=True,
    compile=True,
)
PLACES = {"resnet20": "weights", "vgg16": "weights:!fc"}
PRUNINGS = {"resnet20": 12, "vgg16": 20}
CHECKED = (4, 8, 12)  # rounds whose masks get controls


def ways(model: str) -> Iterator[tuple[str, Method]]:
    """Iterative magnitude pruning, with every way to go on after a pruning."""
    imp = IMP(prunings=PRUNINGS[model], rewind=0, at=PLACES[model])
    yield "IMP", replace(imp, rewind="2ep")
    yield "IMP, learning rate rewound", replace(imp, retrain="lr")
    yield "IMP, fine-tuning", replace(imp, retrain="finetune")
    yield "IMP, rewound to 0", imp
    yield "IMP-C", replace(imp, retrain="none")


def _entries(seed: int) -> list[Entry]:
    recipe, found = replace(RECIPE, seed=seed), []
    for model, at in PLACES.items():
        found.append(Entry("dense", Experiment(model, "cifar10", Dense(), recipe, norm_scales="uniform")))
        found += [
            Entry(label, Experiment(model, "cifar10", method, recipe, norm_scales="uniform"))
            for label, method in ways(model)
        ]
        search = dict(ways(model))["IMP"]
        for round in CHECKED:
            share = f"{100 * 0.8**round:.3g} %"
            continuous = ContinuousSparsification(density=0.8**round, at=at)
            found.append(Entry(f"CS: {share}", Experiment(model, "cifar10", continuous, recipe, norm_scales="uniform")))
            found += [
                Entry(
                    f"IMP, {control}: {share}",
                    Isolated(model, "cifar10", search, recipe, norm_scales="uniform", round=round, control=control),
                )
                for control in CONTROLS
                if control != "ticket"
            ]
    return found


# Medians of the released results (accuracy in percent; of the dense networks the means): density → weights rewound, learning rate rewound, fine-tuning, to 0.
_RENDA = {
    0.512: (91.99, 92.29, 91.37, 90.59),
    0.210: (91.67, 91.89, 90.46, 89.21),
    0.107: (91.00, 91.01, 89.32, 86.68),
}
_WAYS = ("IMP", "IMP, learning rate rewound", "IMP, fine-tuning", "IMP, rewound to 0")


def _quoted(model: str, label: str, accuracy: float, density: float) -> dict[str, Any]:
    name, _, setting = label.partition(":")
    method = f"{name} (Renda et al.){':' if setting else ''}{setting}"
    error = round(100 - accuracy, 2)
    return {"model": model, "data": "cifar10", "method": method, "error": error, "weight_density": density}


_PRINTED = (
    _quoted("resnet20", "dense", 91.71, 1.0),
    *(
        _quoted("resnet20", f"{name}: {100 * density:g} %", accuracy, density)
        for density, found in _RENDA.items()
        for name, accuracy in zip(_WAYS, found, strict=True)
    ),
    _quoted("vgg16", "dense", 93.33, 1.0),
)

FRANKLE = Table(
    "frankle2020", "lottery tickets by IMP and every way to rewind, ResNet-20 and VGG-16 (GPU)", _entries, _PRINTED
)
