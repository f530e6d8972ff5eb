"""The end of a training with gates: they are frozen, and the weights settle on what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paring.core import Shorthand, in_steps, validate
from paring.methods.by_layer import ByLayer, as_by_layer, named


@dataclass(frozen=True)
class Hold(Shorthand):
    """When the gates stop moving, and how the weights train from then on. A number alone is `Hold(last=number)`.

    Args:
        last: last fraction of training, in [0, 1), in which the gates stand still; None means 0 with a price and 0.25 with
            a budget.
        rewind: then the weights that are left go back to where they were after so many epochs ("1ep") or optimizer steps (0:
            their initial values) and train from there on without the gates' noise, and with gates of one, as a lottery
            ticket does; None goes on with the weights that there are.
        drop: probability, in [0, 1), with which a unit that was kept still drops out of a training example (what is left is
            scaled by 1/(1 − drop)), or pairs (layer pattern, probability): closed gates make no noise any more, and a small
            network wants some.

    Raises:
        ValueError: a number out of its range.
    """

    last: float | None = None
    rewind: str | int | None = None
    drop: ByLayer = 0.0

    def __post_init__(self) -> None:
        if self.last is not None:
            validate.within(self, "[0, 1)", "last", what="a fraction of training,")
        if self.rewind is not None:
            in_steps("Hold(rewind=...)", self.rewind, 1, least=0)
        as_by_layer(self, "drop", "[0, 1)")

    @classmethod
    def of(cls, given: float | Hold | None) -> Hold:
        """What a user gave: a number, None or a `Hold`."""
        return given if isinstance(given, Hold) else cls(given)

    @property
    def drops(self) -> bool:
        """Whether anything drops out."""
        return any(value for _, value in named(self.drop))

    @property
    def plain(self) -> Any:
        return self.last if self == Hold(self.last) else self
