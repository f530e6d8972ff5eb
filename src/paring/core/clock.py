"""Where training stands: a frozen value that methods read and nobody shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """The time of one training step.

    Attributes:
        step: optimizer steps finished in this round.
        round: rounds finished (multi-round methods; 0 in ordinary training).
        steps: optimizer steps in a whole round, or None when the caller's loop has no end that it knows of.
        epoch_steps: optimizer steps in one epoch, or None.
    """

    step: int = 0
    round: int = 0
    steps: int | None = None
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("step", self.step, 0),
            ("round", self.round, 0),
            ("steps", self.steps, 1),
            ("epoch_steps", self.epoch_steps, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"Clock({name}={value}): must be at least {least}")

    @property
    def fraction(self) -> float | None:
        """Part of this round that is over, in [0, 1]; None when the round's length is unknown."""
        return None if self.steps is None else min(1.0, self.step / self.steps)

    @property
    def epoch(self) -> float | None:
        """Epochs finished in this round (fractional); None when the epoch's length is unknown."""
        return None if self.epoch_steps is None else self.step / self.epoch_steps
