"""Weights that are zero stay zero: train a network that somebody has pruned already.

This is how a ticket is trained in isolation, and how a network that another tool pruned is fine-tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import clear_closed, freeze_masks, put_masks, set_masks, sites_of, weights_of


@dataclass(frozen=True)
class Masked(Method):
    """Dense training of the weights that are not exactly zero when the method is attached.

    Args:
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        structure: of their pattern; `select.NM(2, 4)` lets removal keep it.
        factor: multiplies them, in the forward pass; `finish` folds it away (Continuous Sparsification's 1/sigma(s0)).

    Raises:
        ValueError: a factor that is no positive number.
    """

    goal: ClassVar[str | None] = "baseline"

    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    factor: float = 1.0
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.positive(self, "factor")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at, self.structure, self.factor)
        attached(net).notes[self] = found
        set_masks(net, found, weights_of(net, found))
        freeze_masks(net, found)

    @property
    def needs_training(self) -> bool:
        return False

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        clear_closed(net, sites_of(net, self))
