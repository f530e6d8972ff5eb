"""Supermasks (Zhou, Lan, Liu, Yosinski, NeurIPS 2019, arXiv 1905.01067): weights do not move, a mask is learned.

    w̃ = w ⊙ m,   m ~ Bernoulli(σ(logit)),   logits trained by the straight-through gradient

Nothing but the masks moves: no weight, no bias, no norm's scale and shift (running statistics of norms do). Masks want
a large learning rate: 100 with SGD in the paper.

The paper draws masks at test time too. A network that comes out needs one: here each weight that is more likely in than
out, so one that was never updated is out. `draw` takes a mask drawn with that seed instead, as the paper would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import (
    SupermaskGate,
    gate_of,
    put_gate,
    rest_weights,
    set_signed_constant,
    sites_of,
    weight_of,
    weight_sites,
)


@dataclass(frozen=True)
class Supermask(Method):
    """Learned Bernoulli masks on weights that never move.

    Args:
        constant: first set every weight to its sign times the standard deviation of Glorot's initialisation.
        rescale: multiply a mask by (number of weights) / (number of open ones), per layer.
        draw: seed of a mask that is drawn at the end; None takes the likelier value of each weight.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        gate_lr: learning rate of the logits as a multiple of that given to `parameter_groups`.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "masks"

    constant: bool = False
    rescale: bool = False
    draw: int | None = None
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.not_negative(self, "gate_lr")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = weight_sites(net, probe, self.at)
        modules = dict(net.named_modules())
        for site in found:
            weight = weight_of(net, site)
            gate = SupermaskGate(
                site.shape,
                rescale=self.rescale,
                lr_scale=self.gate_lr,
                device=weight.device,
                dtype=weight.dtype,
            )
            put_gate(modules, site, gate)
        for site in found if self.constant else ():
            weight = weight_of(net, site)
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
            set_signed_constant(weight, math.sqrt(2 / (fan_in + fan_out)))
        attached(net).notes[self] = found

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        rest_weights(net)

    @property
    def reads_weights(self) -> bool:
        return False

    def finish(self, net: nn.Module) -> None:
        if self.draw is None:
            return
        generator = torch.Generator().manual_seed(self.draw)
        for site in sites_of(net, self):
            gate = gate_of(net, site)
            assert isinstance(gate, SupermaskGate)
            gate.draw(generator)
