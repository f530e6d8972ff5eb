"""Sparse evolutionary training (Mocanu et al. 2018).

Few weights from beginning to end; now and then every layer drops the fraction `drop` of its open weights, those of
smallest magnitude, and opens as many others at random, at zero. The paper drops the smallest positive and the largest
negative weights, which is the smallest magnitudes of each sign; we do not look at signs, as in the RigL code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, attached, in_steps, settle_places, steps_or_share, validate
from paring.gates import (
    clear_closed,
    forget,
    freeze_masks,
    mask_of,
    put_masks,
    set_masks,
    sites_of,
    weight_of,
    weights_of,
)

_EXCHANGES = 10  # in a short training


@dataclass(frozen=True)
class SET(Method):
    """Sparse evolutionary training.

    Args:
        density: share of the weights that is open, always, in (0, 1].
        every: optimizer steps or epochs ("1ep") between two exchanges; None: an epoch, the paper's, or a tenth of the time in
            which it exchanges where that is shorter.
        drop: share of a layer's open weights that an exchange replaces, in (0, 1].
        end: fraction of training after which nothing is exchanged any more.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density: `select.ErdosRenyi(kernel=False)` as in the paper.
        seed: of the first masks and of what opens.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    density: float = 0.1
    every: str | int | None = None
    drop: float = 0.3
    end: float = 1.0
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.ErdosRenyi(kernel=False)  # noqa: RUF009  # a frozen value
    seed: int = 0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.within(self, "(0, 1]", "density", "drop", "end")
        if self.every is not None:
            in_steps("SET(every=...)", self.every, 1)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at)
        attached(net).notes[self] = found
        scores = select.random(weights_of(net, found), torch.Generator().manual_seed(self.seed))
        set_masks(net, found, select.masks(scores, self.density, self.allocation, select.Weights()))
        clear_closed(net, found)

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        every = self._every(clock)
        if clock.steps is None and self.end < 1:
            raise ValueError(f"SET(end={self.end}) needs the length of training: tell attach with steps=...")
        if clock.steps is not None and (problem := select.no_exchanges("SET", every, self.end, clock.steps)):
            attached(net).say(problem)

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        found = sites_of(net, self)
        every = self._every(clock)
        part = clock.fraction
        over = part is not None and part >= self.end
        if clock.step % every == 0 and not over:
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + clock.step)
            growth = select.random(weights_of(net, found), draw)
            for site in found:
                gate, weight = mask_of(net, site), weight_of(net, site)
                gate.exchange(weight.detach().abs(), growth[site.layer], self.drop)
                if (fresh := gate.take_fresh()) is not None:
                    forget(opt, weight, fresh)
        freeze_masks(net, found, over)
        clear_closed(net, found)

    @property
    def needs_whole(self) -> bool:
        return True

    def _every(self, clock: Clock) -> int:
        return steps_or_share("SET(every=...)", self.every, clock, usual="1ep", share=self.end / _EXCHANGES)
