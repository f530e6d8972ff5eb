"""`python -m evidence bench training-speed`: training that shrinks while it goes, against dense training, at the same recipe.

All start from the same weights and see the same batches; they train in turns, epoch by epoch, in one process, so that
whatever else the machine does hits them alike. Time is that of the training steps (cuts, their checks and their
measurements included; evaluation and checkpoints not), on the clock and of the process's own CPU time.

The gates get the first `closing` epochs to close; then L0 holds them on a support of the asked MACs and round widths, and
`Shrink` multiplies them into the weights and cuts the network down. Learning rates are constant, and the budget's ascent
is per step, so that a run of fewer epochs is the beginning of a run of 200: `seconds_200` adds the missing epochs at the
median time of the last ones.

LeNet-5-Caffe races in PyTorch's own memory order, in which a plain loop trains, and channels-last, the faster one; on the
images as they are, with weights that are rewound once the gates are held, and on images shifted by up to a pixel, going on
with the weights that there are. The former setting was chosen on a validation split after the latter had been measured.
In the races "with noise" the inputs of linear layers that are kept go on to drop out once the gates are held
(`Hold(drop=)`), as gates that are not held do: a small network that trains without any noise stays behind the dense one.
Noise on the maps of the first convolution slowed the beginning down and brought nothing (validation).

The budgets ask for MACs alone: maps cost the time, and weights of dense layers next to none. To choose settings,
`compare(..., validation=5000)` leaves the test set alone; the test set is read once per row.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence.benches.book import Asked, Book
from paring.cli.experiment import Experiment
from paring.cli.human import percent
from paring.core import Method, Stack
from paring.cost import measure
from paring.data import Dataset
from paring.data import load as load_data
from paring.methods import L0, Budget, Dense, Hold, Shrink
from paring.train import Recipe, Trainer, evaluate

WHOLE = 200
_LAST = 5
_WIDTH = 8  # widths become multiples of this
_RATIOS = {"ratio": "train_seconds", "ratio_cpu": "cpu_seconds"}
_RATIOS |= {f"ratio_{WHOLE}": f"seconds_{WHOLE}", f"ratio_cpu_{WHOLE}": f"cpu_seconds_{WHOLE}"}


@dataclass(frozen=True)
class Race:
    """One comparison.

    Args:
        model, data: what is trained on what.
        recipe: how.
        budgets: shares of the MACs that the gates leave; each is a training of its own.
        closing: epochs after which gates are held.
        epochs: epochs that are run by default.
        rewind: the weights go back to their initial values once the gates are held.
        drop: probabilities of `Hold(drop=)`; there are gates on maps and on inputs of linear layers then.
        measured: cut only what makes a measured step faster; False cuts at every look, the same in every run.
    """

    model: str
    data: str
    recipe: Recipe
    budgets: tuple[float, ...]
    closing: int
    epochs: int
    rewind: bool = False
    drop: tuple[tuple[str, float], ...] = ()
    measured: bool = True

    @property
    def images(self) -> str:
        """What training does to the images."""
        shifted = f"shifted by up to {self.recipe.crop}" if self.recipe.crop else ""
        return ", ".join(filter(None, (shifted, "flipped" * self.recipe.flip))) or "as they are"

    @property
    def memory_order(self) -> str:
        """Of images and convolution weights."""
        return "channels last" if self.recipe.channels_last else "contiguous"

    def methods(self, epochs: int) -> dict[str, Method]:
        """Dense, and L0 that shrinks; how far the multiplier rises per epoch does not depend on their number."""
        if epochs <= self.closing:
            raise ValueError(
                f"{self.model} gives its gates {self.closing} epochs to close, so --epochs must be more, not {epochs}"
            )
        found: dict[str, Method] = {"dense": Dense()}
        for share in self.budgets:
            price = Budget(macs=share, ascent=5.0 * epochs, multiple_of=_WIDTH)
            hold = Hold(1 - self.closing / epochs, rewind=0 if self.rewind else None, drop=self.drop or 0.0)
            gates = L0(price=price, at=("units:Conv2d", "inputs:Linear") if self.drop else "units", hold=hold)
            shrink = Shrink(every="1ep", multiple_of=_WIDTH, measure=self.measured, fold=True)
            found[shrunk(share, rewound=self.rewind, noisy=bool(self.drop))] = Stack(gates, shrink)
        return found


def shrunk(share: float, *, rewound: bool = False, noisy: bool = False) -> str:
    """Label of the training that shrinks to this share."""
    return f"L0 + Shrink, {'rewound, ' * rewound}{'with noise, ' * noisy}{100 * share:g} % of the MACs"


_MNIST = Recipe(batch=100, lr=1e-3, ema=0.999, crop=1)
_CIFAR = Recipe(batch=128, lr=0.1, optimizer="sgd", nesterov=True, weight_decay=5e-4, ema=0.999, crop=4, flip=True)
_GPU = replace(_CIFAR, device="cuda", bf16=True, compile=True)
_PLAIN = replace(_MNIST, crop=0)
_NOISE = (("fc1", 0.25), ("fc2", 0.5))
RACES = (
    Race("lenet5_caffe", "mnist", replace(_PLAIN, channels_last=False), (0.2,), 1, 30, rewind=True, drop=_NOISE),
    Race("lenet5_caffe", "mnist", _PLAIN, (0.2,), closing=1, epochs=30, rewind=True, drop=_NOISE),
    Race("lenet5_caffe", "mnist", replace(_PLAIN, channels_last=False), (0.2,), closing=2, epochs=24, rewind=True),
    Race("lenet5_caffe", "mnist", _PLAIN, (0.2,), closing=2, epochs=24, rewind=True),
    Race("lenet5_caffe", "mnist", replace(_MNIST, channels_last=False), budgets=(0.2,), closing=5, epochs=30),
    Race("lenet5_caffe", "mnist", _MNIST, budgets=(0.2,), closing=5, epochs=30),
    Race("lenet_300_100", "mnist", _MNIST, budgets=(0.25, 0.12), closing=10, epochs=40),
    Race("resnet20", "cifar10", _CIFAR, budgets=(0.4,), closing=1, epochs=3),
    Race("wrn_28_10", "cifar10", _GPU, budgets=(0.4,), closing=3, epochs=8),
)


def run(asked: Asked) -> Path:
    """Run every comparison of which the results file lacks a row."""
    book = Book(asked, "training-speed")
    for race in RACES:
        epochs = asked.epochs or race.epochs
        if race.recipe.device == "cuda" and not torch.cuda.is_available():
            print(f"{race.model} needs a GPU: left out")
            continue
        for seed in range(asked.seeds or 3):
            names = [_name(race, method, epochs, seed) for method in race.methods(epochs)]
            if any(book.wants(name) for name in names):
                for row in compare(race, epochs, seed, asked.runs / "training-speed", anew=asked.again):
                    book.add(row)
                    print(_line(row), flush=True)
    return book.close()


class Runner:
    """One of the trainings, with a random state of its own."""

    def __init__(self, experiment: Experiment, data: Dataset, folder: Path | None) -> None:
        self.experiment = experiment
        place = folder / experiment.name if folder is not None else None
        self.trainer = Trainer(experiment.network(data), experiment.method, data, experiment.recipe, place)
        device = self.trainer.device
        self._cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=self._cuda):
            self.trainer.begin()
            self._random = self._states()

    def epoch(self) -> dict[str, Any]:
        """Train one epoch."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._random[0])
            for device, state in zip(self._cuda, self._random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            row = self.trainer.train_epoch()
            self._random = self._states()
        return row

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)]

    def times(self, key: str) -> list[float]:
        """Seconds of every epoch."""
        sums = [0.0, *(row[key] for row in self.trainer.record.rows if "epoch" in row)]
        return [after - before for before, after in itertools.pairwise(sums)]


def compare(
    race: Race,
    epochs: int,
    seed: int,
    folder: Path | None,
    *,
    data: Dataset | None = None,
    validation: int = 0,
    anew: bool = False,
) -> Iterator[dict[str, Any]]:
    """Train all in turns and yield a row for each.

    Args:
        race: the comparison.
        epochs: of each.
        seed: of weights, order, gates and augmentation.
        folder: of checkpoints, from which an interrupted comparison goes on; None keeps none.
        data: the data set, when the caller holds it already.
        validation: training examples set aside; errors are then those on them, and the test set is not touched.
        anew: a comparison that the folder holds whole is run again instead of read.
    """
    data = data or load_data(race.data, validation=validation, seed=seed)
    recipe = replace(race.recipe, epochs=epochs, seed=seed)
    experiments = {
        name: Experiment(race.model, race.data, method, recipe, validation=validation)
        for name, method in race.methods(epochs).items()
    }
    runners = {name: Runner(experiment, data, folder) for name, experiment in experiments.items()}
    if anew and folder is not None and all(runner.trainer.epoch >= epochs for runner in runners.values()):
        for experiment in experiments.values():
            shutil.rmtree(folder / experiment.name)
        runners = {name: Runner(experiment, data, folder) for name, experiment in experiments.items()}
    for epoch in range(epochs):
        told = []
        for name, runner in runners.items():
            if runner.trainer.epoch <= epoch:
                runner.epoch()
            told.append(f"{name} {runner.times('seconds')[epoch]:.1f} s")
        print(f"{race.model} seed {seed} epoch {epoch + 1}/{epochs}: {', '.join(told)}", file=sys.stderr, flush=True)
    rows = {name: _row(race, name, runner, data, bool(validation)) for name, runner in runners.items()}
    for row in rows.values():
        for ratio, key in _RATIOS.items():
            row[ratio] = rows["dense"][key] / row[key]
        yield row


def _row(race: Race, name: str, runner: Runner, data: Dataset, validating: bool) -> dict[str, Any]:
    trainer = runner.trainer
    fitted = trainer.end()
    shrinks = list(fitted.run.shrinks)
    small = fitted.run.finish()
    real = measure(small, data.train.x[:1].to(trainer.device))
    wall, cpu = runner.times("seconds"), runner.times("cpu_seconds")
    error = evaluate(small, (data.validation if validating else data.test).to(trainer.device))[1]
    epochs, steps = len(wall), trainer.epoch_steps
    return {
        "run": _name(race, name, epochs, trainer.recipe.seed),
        "model": race.model,
        "data": race.data,
        "method": name,
        "seed": trainer.recipe.seed,
        "epochs": epochs,
        "closing": race.closing,
        "memory_order": race.memory_order,
        "images": race.images,
        "validation_error" if validating else "error": error,
        "parameters": real.parameters,
        "macs": real.macs,
        "train_seconds": sum(wall),
        "cpu_seconds": sum(cpu),
        f"seconds_{WHOLE}": _whole(wall, race.closing),
        f"cpu_seconds_{WHOLE}": _whole(cpu, race.closing),
        "step_ms_first": 1e3 * wall[0] / steps,
        "step_ms_last": 1e3 * wall[-1] / steps,
        "shrinks": sum(bool(one["done"]) for one in shrinks),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
    }


def _whole(times: list[float], closing: int) -> float:
    """Seconds for 200 epochs: those measured, and the missing ones at the median of the last few after the closing."""
    last = times[max(closing, len(times) - _LAST) :]
    return sum(times[:WHOLE]) + max(0, WHOLE - len(times)) * statistics.median(last)


def _name(race: Race, method: str, epochs: int, seed: int) -> str:
    return f"{race.model}/{race.memory_order}/{race.images}/{method}/{epochs} epochs/seed {seed}"


def _line(row: dict[str, Any]) -> str:
    error = row["error"] if "error" in row else row["validation_error"]
    return (
        f"{row['run']:<48}{row['train_seconds']:8.1f} s, {row['ratio']:.2f} times as fast "
        f"({row[f'ratio_{WHOLE}']:.2f} over {WHOLE} epochs), error {percent(error)}, {row['parameters']:,} parameters"
    )
