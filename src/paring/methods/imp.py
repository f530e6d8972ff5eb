"""Iterative magnitude pruning, with every way to begin the next round.

Train; close the `rate` lowest magnitudes of what is open; begin again; after the last pruning train what stays. The
share of weights that is open in round r is (1 - rate)^r.

    retrain = "weights"   open weights go back to those of step `rewind` of the first round, schedule included (Frankle
                          and Carbin 2019 with `rewind=0`, Frankle et al. 2020)
              "lr"        weights stay as they are, only the schedule goes back to step `rewind` (Renda et al. 2020)
              "finetune"  weights stay and train for as long at the last learning rate (Han et al. 2015)
              "none"      weights stay and the whole schedule is repeated ("IMP-C" of Savarese et al. 2020)

Running statistics of norms go back with the weights, and the optimizer forgets its state in every round. Biases and
norms are never pruned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn

from paring import select
from paring.core import (
    At,
    Clock,
    Method,
    Places,
    Probe,
    Rewind,
    attached,
    hashed_as,
    in_steps,
    settle_places,
    validate,
)
from paring.gates import clear_closed, freeze_masks, put_masks, set_masks, sites_of, weights_of
from paring.methods.chosen import narrowed

_WAYS = ("weights", "lr", "finetune", "none")


@dataclass(frozen=True)
class IMP(Method):
    """Iterative magnitude pruning.

    Args:
        prunings: how often something is pruned; there is one round more than that.
        rate: share of the open weights (with a structure, of their pieces) that each pruning closes, in (0, 1).
        retrain: how the next round begins, see above.
        rewind: rewind point as epochs of the first round ("2ep") or optimizer steps (500); 0 is the initialisation.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density; `select.Global()` is one threshold for all.
        structure: what is pruned together.

    Raises:
        ValueError: a number out of its range, or an unknown `retrain`.
    """

    goal: ClassVar[str | None] = "tickets"

    prunings: int = 5
    rate: float = 0.2
    retrain: Literal["weights", "lr", "finetune", "none"] = field(default="weights", metadata=hashed_as("rewind"))
    rewind: str | int = field(default=0, metadata=hashed_as("to"))
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Global()  # noqa: RUF009  # a frozen value
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.whole_number(self, "prunings")
        validate.within(self, "(0, 1)", "rate")
        validate.one_of(self, "retrain", _WAYS)
        in_steps("IMP(rewind=...)", self.rewind, 1, least=0)
        self.structure.check(f"IMP(prunings={self.prunings}, rate={self.rate})", self.density(self.prunings))

    @property
    def rounds(self) -> int:
        return self.prunings + 1

    @property
    def tickets(self) -> range:
        return range(1, self.rounds)

    def density(self, round: int) -> float:
        """Share of the weights that is open in this round, from 0."""
        return float((1 - self.rate) ** round)

    def point(self, clock: Clock) -> int | None:
        return self._point(clock)

    def begin(self, clock: Clock) -> Rewind:
        step = 0 if self.retrain == "none" else self._point(clock)
        return Rewind(weights=self.retrain == "weights", step=step, flat=self.retrain == "finetune")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        attached(net).notes[self] = put_masks(net, probe, self.at, self.structure)

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        point = self._point(clock)
        if clock.steps is not None and point >= clock.steps:
            raise ValueError(
                f"IMP(rewind={self.rewind!r}) is step {point}, but a round has only {clock.steps}: give an earlier step, or train longer"
            )
        clear_closed(net, sites_of(net, self))

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        if clock.round > 0:
            clear_closed(net, sites_of(net, self))

    def on_round(self, net: nn.Module, clock: Clock) -> None:
        found = sites_of(net, self)
        scores = select.magnitude(weights_of(net, found))
        masks = narrowed(net, found, scores, self.density(clock.round + 1), self.allocation, self.structure)
        set_masks(net, found, masks)
        freeze_masks(net, found)

    def _point(self, clock: Clock) -> int:
        return in_steps("IMP(rewind=...)", self.rewind, clock.epoch_steps, least=0)
