"""Friesen and Domingos 2018 (feasible target propagation): gradient rules of hard-threshold networks, compared.

Two tables. `friesen2018-small` is at the scale of a CPU: LeNet-300-100 and ConvNet4 at a quarter of its widths, on MNIST and
Fashion-MNIST, one recipe for all rules of a network (Adam with a cosine schedule, batches of 100, no weight decay, no
augmentation). `friesen2018` has the published settings, ConvNet4 and ConvNet8 on CIFAR-10: Adam at 2.5e-4 and 1e-3, batches of 64,
300 epochs, divided by 10 at 200 and 250, weight decay 5e-4, crops and flips; all 50,000 examples are trained on, and the
error is that of the last epoch.

Methods are gradient rules; "units" says of what. "sste" has the window |z| <= 1, "sste, √3" the authors' second one,
"ftp-sh, unweighted" forgets |G|. "approx-sign" (Bi-Real Net) and "lsq" (learned step) are later than the paper. "relu" and
"saturated-relu" have real units. Weights are real throughout, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evidence.tables.hard import HardExperiment
from evidence.tables.table import Entry, Table
from paring.core import Method
from paring.hard import STE, ApproxSign, GradientRule, Hinge, LogLoss, SaturatedSTE, SaturatingHinge, SoftHinge
from paring.methods import Binarize, Dense
from paring.train import Recipe

_MAIN: dict[str, GradientRule] = {
    "ste": STE(),
    "sste": SaturatedSTE(),
    "saturating-hinge": SaturatingHinge(),
    "ftp-sh": SoftHinge(),
}
_SIGN: dict[str, GradientRule] = {
    "hinge": Hinge(),
    "log-loss": LogLoss(),
    "ftp-sh, unweighted": SoftHinge(weighted=False),
    "approx-sign": ApproxSign(),
}
STEPS = {"2-bit": 3, "3-bit": 5}

_ADAM = Recipe(schedule="cosine", batch=100)
SCALES = {
    "lenet_300_100": replace(_ADAM, epochs=6, lr=3e-3),
    "convnet4_8": replace(_ADAM, epochs=3, lr=3e-3),
}

_CIFAR = Recipe(
    epochs=300, batch=64, schedule="step", milestones=(200, 250), weight_decay=5e-4, crop=4, flip=True, device="cuda",
    compile=True,
)  # fmt: skip
PUBLISHED = {"convnet4": replace(_CIFAR, lr=2.5e-4), "convnet8": replace(_CIFAR, lr=1e-3)}


def _binarize(activations: Any, rule: GradientRule | None = None, steps: int = 3) -> Binarize:
    return Binarize(activations, "none", rule=SoftHinge() if rule is None else rule, steps=steps)


def _real() -> Iterator[tuple[str, Method]]:
    yield "relu", Dense()
    yield "saturated-relu", _binarize("saturated_relu")


def _hard_small() -> Iterator[tuple[str, Method]]:
    for name, rule in (_MAIN | _SIGN).items():
        yield name, _binarize("sign", rule)
    for steps in STEPS.values():
        for name, rule in _MAIN.items():
            yield name, _binarize("staircase", rule, steps)
        yield "lsq", _binarize("learned_step", steps=steps)


def _hard_cifar() -> Iterator[tuple[str, Method]]:
    for name in ("ste", "sste", "ftp-sh"):
        yield name, _binarize("sign", _MAIN[name])
        yield name, _binarize("staircase", _MAIN[name])
    yield "sste, √3", _binarize("sign", SaturatedSTE(3**0.5))
    yield "approx-sign", _binarize("sign", ApproxSign())
    yield "lsq", _binarize("learned_step")


def _small(seed: int) -> list[Entry]:
    return [
        Entry(label, HardExperiment(model, data, method, replace(recipe, seed=seed)))
        for model, recipe in SCALES.items()
        for data in ("mnist", "fashion_mnist")
        for label, method in (*_hard_small(), *_real())
    ]


def _cifar(seed: int) -> list[Entry]:
    return [
        Entry(label, HardExperiment(model, "cifar10", method, replace(recipe, seed=seed)))
        for model, recipe in PUBLISHED.items()
        for label, method in (*_hard_cifar(), *_real())
    ]


_RECALLED = {
    ("sign", "sste"): (80.6, 84.6),
    ("sign", "ftp-sh"): (81.3, 84.9),
    ("2-bit", "sste"): (85.6, 88.4),
    ("2-bit", "ftp-sh"): (85.5, 89.8),
    ("real", "relu"): (86.5, 91.2),
    ("saturated", "saturated-relu"): (87.3, 91.2),
}


def _quoted() -> tuple[dict[str, Any], ...]:
    """The paper's accuracies as they are remembered, not as they were read: the label says so."""
    return tuple(
        {
            "run": f"quoted/{model}/{units}/{method}",
            "model": model,
            "data": "cifar10",
            "units": units,
            "method": f"{method} (Friesen and Domingos, recalled)",
            "error": round(100 - accuracy, 1),
        }
        for (units, method), both in _RECALLED.items()
        for model, accuracy in zip(PUBLISHED, both, strict=True)
    )


FRIESEN_SMALL = Table(
    "friesen2018-small", "gradient rules of sign and staircase networks, MNIST and Fashion-MNIST", _small
)
FRIESEN = Table(
    "friesen2018",
    "gradient rules of ConvNet4 and ConvNet8 on CIFAR-10, settings of the paper (GPU)",
    _cifar,
    _quoted(),
    1,
)
