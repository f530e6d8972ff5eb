"""RigL: training with few weights from beginning to end, that move to where the gradient is largest (Evci et al. 2020).

Every `every` steps a layer drops the fraction a/2 (1 + cos(pi t / T_end)) of its open weights, those of smallest
magnitude, and opens as many where the gradient of the loss is largest, at zero and with a fresh optimizer state. In such a
step the optimizer moves nothing at all, as in the authors' code: gradients only decide. Closed weights have gradients
in these steps alone; all others cost what masked training costs.

"5x" in the paper is the same method on a recipe of five times the epochs. Its code exchanges the constant fraction `drop`
by default, the paper the falling one, as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, attached, in_steps, settle_places, steps_or_share, validate
from paring.gates import clear_closed, forget, mask_of, put_masks, set_masks, sites_of, weight_of, weights_of

_EXCHANGES = 8  # in a short training


@dataclass(frozen=True)
class RigL(Method):
    """Rigged Lottery: sparse training by gradient.

    Args:
        density: share of the weights that is open, always, in (0, 1].
        every: optimizer steps (100) or epochs ("1ep") between two exchanges; None: 100 steps, or an eighth of the time in
            which it exchanges where that is shorter.
        drop: share of a layer's open weights that the first exchange replaces, in (0, 1].
        end: fraction of training after which nothing is exchanged any more.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density: `select.ErdosRenyi()` is ERK, `select.Uniform(first_dense=True)`
            the paper's "uniform".
        seed: of the first masks, which are random.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    density: float = 0.1
    every: str | int | None = None
    drop: float = 0.3
    end: float = 0.75
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.ErdosRenyi()  # noqa: RUF009  # a frozen value
    seed: int = 0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.within(self, "(0, 1]", "density")
        if self.every is not None:
            in_steps("RigL(every=...)", self.every, 1)
        _ = self.schedule

    @property
    def schedule(self) -> select.CosineDrop:
        """Fraction to exchange as a function of the fraction of training that is over."""
        return select.CosineDrop(self.drop, self.end)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at)
        attached(net).notes[self] = found
        scores = select.random(weights_of(net, found), torch.Generator().manual_seed(self.seed))
        set_masks(net, found, select.masks(scores, self.density, self.allocation, select.Weights()))
        clear_closed(net, found)

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        if clock.steps is None:
            raise ValueError("RigL follows a schedule over the whole training: tell attach its length with steps=...")
        if problem := select.no_exchanges("RigL", self._every(clock), self.end, clock.steps):
            attached(net).say(problem)
        self._look(net, clock)

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        if not self._exchanges(clock):
            return
        assert clock.steps is not None
        fraction = self.schedule(clock.step / clock.steps)
        for site in sites_of(net, self):
            gate, weight = mask_of(net, site), weight_of(net, site)
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gate.exchange(weight.detach().abs(), grad.abs(), fraction)
        for parameter in net.parameters():
            parameter.grad = None

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        found = sites_of(net, self)
        for site in found:
            if (fresh := mask_of(net, site).take_fresh()) is not None:
                forget(opt, weight_of(net, site), fresh)
        clear_closed(net, found)
        self._look(net, clock)

    @property
    def needs_whole(self) -> bool:
        return True

    def _exchanges(self, clock: Clock) -> bool:
        """Whether the optimizer step that follows `clock.step` finished ones is an exchange."""
        every = self._every(clock)
        fraction = clock.fraction
        return clock.step > 0 and clock.step % every == 0 and fraction is not None and fraction < self.end

    def _every(self, clock: Clock) -> int:
        return steps_or_share("RigL(every=...)", self.every, clock, usual=100, share=self.end / _EXCHANGES)

    def _look(self, net: nn.Module, clock: Clock) -> None:
        """Ask for gradients of closed weights in the coming step if it is an exchange."""
        fraction = clock.fraction
        for site in sites_of(net, self):
            gate = mask_of(net, site)
            gate.let_through(self._exchanges(clock))
            gate.freeze(fraction is not None and fraction >= self.end)
