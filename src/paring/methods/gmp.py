"""Gradual magnitude pruning (Zhu and Gupta 2017; the baseline of Gale, Elsen, Hooker 2019).

    sparsity(t) = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3

Every `every` steps the smallest magnitudes are closed, in each layer for itself unless another allocation is given. As in
the authors' code a closed weight keeps the value it had (it is put aside while the network sees a zero), so it comes
back if the weights that stayed fall below it; with `recover=False` closed weights stay closed.
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
    freeze_masks,
    latent_of,
    mask_of,
    put_aside,
    put_masks,
    set_masks,
    sites_of,
    weight_of,
)
from paring.methods.chosen import chosen, narrowed

_PRUNINGS = 8  # in a short ramp


@dataclass(frozen=True)
class GMP(Method):
    """Gradual magnitude pruning.

    Args:
        density: share of the weights (with a structure, of its pieces) that is open in the end, in (0, 1].
        ramp: fractions of training between which sparsity rises; the rest fine-tunes.
        every: optimizer steps (100) or epochs ("1ep") between two prunings; None: 100 steps, or an eighth of the ramp
            where that is shorter.
        power: of the schedule (3: the paper's).
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density: `select.Uniform()` as in the paper, `select.Global()`, `ErdosRenyi`,
            `Given`.
        structure: what is pruned together.
        recover: let closed weights come back.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    density: float = 0.1
    ramp: tuple[float, float] = (0.0, 0.75)
    every: str | int | None = None
    power: float = 3.0
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Uniform()  # noqa: RUF009  # a frozen value
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value
    recover: bool = True

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.within(self, "(0, 1]", "density")
        if self.every is not None:
            in_steps("GMP(every=...)", self.every, 1)
        object.__setattr__(self, "ramp", tuple(self.ramp))
        if len(self.ramp) != 2:
            raise ValueError(f"GMP(ramp={self.ramp}): two fractions of training, where it begins and where it ends")
        _ = self.schedule
        self.structure.check(f"GMP(density={self.density})", self.density)

    @property
    def schedule(self) -> select.Cubic:
        """Sparsity as a function of the fraction of training that is over."""
        return select.Cubic(1 - self.density, begin=self.ramp[0], end=self.ramp[1], power=self.power)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at, self.structure)
        attached(net).notes[self] = found
        if self.recover:
            for site in found:
                mask_of(net, site).set_aside(weight_of(net, site))

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        if clock.steps is None:
            raise ValueError("GMP follows a schedule over the whole training: tell attach its length with steps=...")
        every, window = self._every(clock), (self.ramp[1] - self.ramp[0]) * clock.steps
        if self.density < 1 and every >= window > 1:
            attached(net).say(
                f"GMP(every={self.every!r}) prunes once, to density {self.density:g} in one cut: the ramp is {window:g} of "
                f"{clock.steps} steps. Leave every=... out, give a smaller one, or train longer"
            )

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        assert clock.steps is not None
        every = self._every(clock)
        end = self._end(clock)
        found = sites_of(net, self)
        begun_late = clock.step > end and not all(mask_of(net, site).fixed for site in found)
        if clock.step == end or begun_late:
            self._prune(net, self.density)
        elif clock.step < end and clock.step % every == 0:
            self._prune(net, 1 - self.schedule(clock.step / clock.steps))
        freeze_masks(net, found, clock.step >= end or not self.recover)
        clear_closed(net, found)

    def _every(self, clock: Clock) -> int:
        share = (self.ramp[1] - self.ramp[0]) / _PRUNINGS
        return steps_or_share("GMP(every=...)", self.every, clock, usual=100, share=share)

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        end = self._end(clock)
        if clock.step >= end:
            return None
        masks = [mask_of(net, site).mask for site in sites_of(net, self)]
        opened = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        return f"GMP prunes until step {end:,}, so {opened:.1%} of its weights are open and not {self.density:.1%}"

    def _end(self, clock: Clock) -> int:
        """Step at which the density is reached."""
        assert clock.steps is not None
        return max(1, round(self.ramp[1] * clock.steps))

    def _prune(self, net: nn.Module, density: float) -> None:
        found = sites_of(net, self)
        scores = select.magnitude(latent_of(net, found))
        if self.recover:
            put_aside(net, found, chosen(net, found, scores, density, self.allocation, self.structure))
        else:
            set_masks(net, found, narrowed(net, found, scores, density, self.allocation, self.structure))
