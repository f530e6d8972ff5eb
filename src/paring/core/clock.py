"""Where training stands: a frozen value that methods read and nobody shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral


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
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise ValueError(f"Clock({name}={value!r}): must be a whole number, at least {least}")

    @property
    def fraction(self) -> float | None:
        """Part of this round that is over, in [0, 1]; None when the round's length is unknown."""
        return None if self.steps is None else min(1.0, self.step / self.steps)

    @property
    def epoch(self) -> float | None:
        """Epochs finished in this round (fractional); None when the epoch's length is unknown."""
        return None if self.epoch_steps is None else self.step / self.epoch_steps


def in_steps(name: str, value: str | int, epoch_steps: int | None, *, least: int = 1) -> int:
    """A moment or a length as optimizer steps, from 200, "200" or "0.5ep".

    Args:
        name: of the setting, for messages: "Shrink(every=...)".
        value: as the user wrote it.
        epoch_steps: optimizer steps in an epoch, or None when nobody knows.
        least: smallest allowed.

    Raises:
        ValueError: it is neither steps nor epochs, too small, or in epochs whose length is unknown.
    """
    text = str(value).strip()
    epochs = text.endswith("ep")
    try:
        number = float(text.removesuffix("ep")) if epochs else float(int(text))
    except ValueError:
        raise ValueError(f"{name} = {value!r}: give optimizer steps (200) or epochs ('1ep')") from None
    if not (number >= 0 and math.isfinite(number)) or (least > 0 and number == 0):
        raise ValueError(f"{name} = {value!r}: must {'be positive' if least else 'not be negative'}")
    if not epochs:
        return int(number)
    if epoch_steps is None:
        raise ValueError(
            f"{name} = {value!r} counts epochs: tell attach their length with epoch_steps=..., or give steps"
        )
    return max(least, round(number * epoch_steps))


def steps_or_share(
    name: str, value: str | int | None, clock: Clock, *, usual: str | int, share: float, least: int = 1
) -> int:
    """A length as optimizer steps that fits trainings of any length, when the user gave none.

    Args:
        name: of the setting, for messages: "GMP(every=...)".
        value: as the user wrote it; None for `usual`, or this share of a round where that is shorter.
        clock: knows how long a round and an epoch are.
        usual: in steps or epochs; epochs count only when their length is known.
        share: of a round, in (0, 1].
        least: smallest allowed.

    Raises:
        ValueError: as `in_steps`, or neither the length of a round nor of an epoch is known.
    """
    if value is not None:
        return in_steps(name, value, clock.epoch_steps, least=least)
    fit = None if clock.steps is None else max(least, int(share * clock.steps))
    if str(usual).endswith("ep") and clock.epoch_steps is None:
        if fit is None:
            raise ValueError(f"{name} is not given: tell attach the length of training with steps=..., or give steps")
        return fit
    longest = in_steps(name, usual, clock.epoch_steps, least=least)
    return longest if fit is None else min(longest, fit)
