"""Edge-popup (Ramanujan et al., CVPR 2020, arXiv 1911.13299): weights do not move, scores choose among them.

    w̃ = w ⊙ m,   m = 1 for the share `keep` of highest |score| of each layer, and dm / d|score| := 1

Nothing but the scores moves: no weight, no bias, no norm's scale and shift (running statistics of norms do). The paper's
networks have neither biases nor affine norms, and weights ±σ with σ of Kaiming's initialisation (`constant`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import PopupGate, put_gate, rest_weights, set_signed_constant, weight_of, weight_sites


@dataclass(frozen=True)
class EdgePopup(Method):
    """The highest scores of each layer open weights that never move.

    Args:
        keep: share of each layer's weights that is open, in (0, 1].
        constant: first set every weight to its sign times sqrt(2 / fan-in) (Kaiming, for ReLU).
        scale_fan: count only the open share of the fan-in there.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        gate_lr: learning rate of the scores as a multiple of that given to `parameter_groups`.

    Raises:
        ValueError: a number out of its range, or `scale_fan` without `constant`.
    """

    goal: ClassVar[str | None] = "masks"

    keep: float = 0.5
    constant: bool = False
    scale_fan: bool = False
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.within(self, "(0, 1]", "keep")
        if self.scale_fan and not self.constant:
            raise ValueError("EdgePopup(scale_fan=True) is about the size of constant weights: give constant=True too")
        validate.not_negative(self, "gate_lr")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = weight_sites(net, probe, self.at)
        modules = dict(net.named_modules())
        for site in found:
            weight = weight_of(net, site)
            gate = PopupGate(
                site.shape, keep=self.keep, lr_scale=self.gate_lr, device=weight.device, dtype=weight.dtype
            )
            put_gate(modules, site, gate)
        for site in found if self.constant else ():
            weight = weight_of(net, site)
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            set_signed_constant(weight, math.sqrt(2 / (fan_in * (self.keep if self.scale_fan else 1.0))))
        attached(net).notes[self] = found

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        rest_weights(net)

    @property
    def reads_weights(self) -> bool:
        return False
