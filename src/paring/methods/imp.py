"""Iterative magnitude pruning, with every way to begin the next round.

Train; close the `rate` lowest magnitudes of what is open; begin again; after the last pruning train what stays. The
share of weights that is open in round r is (1 - rate)^r.

    rewind = "weights"   open weights go back to those of step `to` of the first round, schedule included (Frankle and
                         Carbin 2019 with `to=0`, Frankle et al. 2020)
             "lr"        weights stay as they are, only the schedule goes back to step `to` (Renda et al. 2020)
             "finetune"  weights stay and train for as long at the last learning rate (Han et al. 2015)
             "none"      weights stay and the whole schedule is repeated ("IMP-C" of Savarese et al. 2020)

Running statistics of norms go back with the weights, and the optimizer forgets its state in every round. Biases and
norms are never pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, Rewind, attached, in_steps, settle_places, whole_number
from paring.gates import clear_closed, mask_of, put_masks, set_masks, sites_of, weights_of
from paring.methods.chosen import narrowed

_WAYS = ("weights", "lr", "finetune", "none")


@dataclass(frozen=True)
class IMP(Method):
    """Iterative magnitude pruning.

    Args:
        prunings: how often something is pruned; there is one round more than that.
        rate: share of the open weights (with a structure, of their pieces) that each pruning closes, in (0, 1).
        rewind: how the next round begins, see above.
        to: rewind point as epochs of the first round ("2ep") or optimizer steps (500); 0 is the initialisation.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density; `select.Global()` is one threshold for all.
        structure: what is pruned together.

    Raises:
        ValueError: a number out of its range, or an unknown `rewind`.
    """

    prunings: int = 5
    rate: float = 0.2
    rewind: Literal["weights", "lr", "finetune", "none"] = "weights"
    to: str | int = 0
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Global()  # noqa: RUF009  # a frozen value
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        whole_number("IMP", "prunings", self.prunings)
        if not 0 < self.rate < 1:
            raise ValueError(f"IMP(rate={self.rate}): must lie in (0, 1)")
        if self.rewind not in _WAYS:
            raise ValueError(f"IMP(rewind={self.rewind!r}): choose one of {', '.join(_WAYS)}")
        in_steps("IMP(to=...)", self.to, 1, least=0)
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
        return self._to(clock)

    def begin(self, clock: Clock) -> Rewind:
        step = 0 if self.rewind == "none" else self._to(clock)
        return Rewind(weights=self.rewind == "weights", step=step, flat=self.rewind == "finetune")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        attached(net).notes[self] = put_masks(net, probe, self.at, self.structure)

    def start(self, net: nn.Module, clock: Clock) -> None:
        to = self._to(clock)
        if clock.steps is not None and to >= clock.steps:
            raise ValueError(
                f"IMP(to={self.to!r}) is step {to}, but a round has only {clock.steps}: give an earlier step, or train longer"
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
        for site in found:
            mask_of(net, site).fixed = True

    def _to(self, clock: Clock) -> int:
        return in_steps("IMP(to=...)", self.to, clock.epoch_steps, least=0)
