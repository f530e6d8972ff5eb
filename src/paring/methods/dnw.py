"""Discovering neural wirings (Wortsman, Farhadi, Rastegari 2019): sparse forward, dense backward.

The network sees the weights of largest magnitude, chosen anew after every step; the gradient reaches all weights as if all
were open, so that closed ones can grow back. It costs a dense backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import clear_closed, freeze_masks, mask_of, put_masks, set_masks, sites_of, weights_of
from paring.methods.chosen import chosen


@dataclass(frozen=True)
class DNW(Method):
    """Sparse training with dense gradients.

    Args:
        density: share of the weights (with a structure, of its pieces) that the network sees, in (0, 1].
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density; the same in every layer as in the paper
            (`select.Uniform(first_dense=True)` is its variant with a dense first layer).
        structure: what is kept or closed together.

    Raises:
        ValueError: a density outside (0, 1].
    """

    goal: ClassVar[str | None] = "sparse"

    density: float = 0.1
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Uniform()  # noqa: RUF009  # a frozen value
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.within(self, "(0, 1]", "density")
        self.structure.check(f"DNW(density={self.density})", self.density)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at, self.structure)
        attached(net).notes[self] = found
        for site in found:
            mask_of(net, site).let_through()
        self._choose(net)

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        self._choose(net)

    def finish(self, net: nn.Module) -> None:
        self._choose(net)
        found = sites_of(net, self)
        for site in found:
            mask_of(net, site).let_through(False)
        freeze_masks(net, found)
        clear_closed(net, found)

    def _choose(self, net: nn.Module) -> None:
        found = sites_of(net, self)
        scores = select.magnitude(weights_of(net, found))
        set_masks(net, found, chosen(net, found, scores, self.density, self.allocation, self.structure))
