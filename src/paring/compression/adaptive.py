"""Adaptive precision through the common door (after Khoram and Li, ICLR 2018); see `paring.compression.precision`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from paring.compression.precision import adaptive_precision
from paring.compression.task import Compressor, Task
from paring.compression.tensors import weights_of
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms


@dataclass(frozen=True)
class AdaptivePrecision(Compressor):
    """Every weight gets as few bits as its tolerance allows.

    Args:
        rounds: attempts (the paper: about 25 [recalled]).
        delta: first radius of the trust region in units of the scaled weights; by default a tenth of their mean size.
        bold: adapt the part of the linear bound that is used; False takes it as published.
        retrain: epochs of training before each round but the first; 0 as published.
        lr: learning rate of that training; a tenth of the training's by default.

    Raises:
        ValueError: a number out of its range.
    """

    rounds: int = 25
    delta: float | None = None
    bold: bool = True
    retrain: float = 0.0
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.retrain < 0 or (self.delta is not None and not self.delta > 0):
            raise ValueError(f"AdaptivePrecision: rounds {self.rounds}, delta {self.delta}, retrain {self.retrain}")

    @property
    def trains(self) -> bool:
        return self.retrain > 0

    def run(self, task: Task) -> None:
        count = 0

        def again(net: nn.Module) -> None:
            nonlocal count
            count += 1
            rate = task.training.lr / 10 if self.lr is None else self.lr
            for parameter in net.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            trained = [p for p in net.parameters() if p.requires_grad]
            Descent(task.training, trained, self.retrain, lr=rate, first=count).run(net)
            estimate_norms(net, task.training)

        def judge(net: nn.Module, number: int, bits: float) -> bool:
            return task.offer(net, round=number, bits=round(bits)).within

        retrain: Callable[[nn.Module], None] | None = again if self.retrain else None
        adaptive_precision(
            task.net,
            task.bound.objective,
            slack=max(0.0, task.bound.loss - task.bound.objective(task.net)),
            names=list(weights_of(task.net)),
            rounds=self.rounds,
            delta=self.delta,
            bold=self.bold,
            retrain=retrain,
            judge=judge,
        )
