"""What gets furthest, with something at hand early: grid rounding, which takes seconds, then entropy rounding.

Of the compressors here entropy rounding needs the fewest bytes by far (docs/results/khoram2018.md); its price of a bit rises until
the bound breaks for good. Where learning finds nothing within the bound, the best grid remains.
"""

from __future__ import annotations

from dataclasses import dataclass

from paring.compression.entropy_rounding import EntropyRounding
from paring.compression.grid_rounding import GridRounding
from paring.compression.task import Compressor, Task

EPOCHS, STEPS = 5.0, 2500
GRIDS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)


@dataclass(frozen=True)
class Smallest(Compressor):
    """Grid rounding, then entropy rounding.

    Args:
        rates: prices of a bit, see `EntropyRounding`.
        epochs: of the training at each price; 0 takes five, and as many as 2,500 steps need where the data are few.
        lr: see `EntropyRounding`.

    Raises:
        ValueError: a number out of its range.
    """

    rates: tuple[float, ...] = (1e-6, 2e-6, 4e-6, 7e-6, 1e-5)
    epochs: float = 0.0
    lr: float | None = None

    def __post_init__(self) -> None:
        if not self.epochs >= 0:
            raise ValueError(f"Smallest(epochs={self.epochs}): must be at least 0")
        self._learning(self.epochs or EPOCHS)

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        epochs = self.epochs or max(EPOCHS, STEPS / task.training.steps)
        GridRounding(GRIDS).run(task)
        self._learning(epochs).run(task)

    def _learning(self, epochs: float) -> EntropyRounding:
        return EntropyRounding(self.rates, epochs=epochs, lr=self.lr, patience=2)
