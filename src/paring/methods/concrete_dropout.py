"""Concrete dropout (Gal, Hron, Kendall, NeurIPS 2017, arXiv 1705.07832).

    minimise over θ and p   E[loss] + Σ_layers  l²/N ‖W‖² / (1 - p)  +  c/N K (p ln p + (1 - p) ln(1 - p))

with K inputs of the layer, N examples, prior length scale l; c = 1 for a cross-entropy, 2 for half a squared error in
units of the noise. Inputs are multiplied by soft drops of temperature `temperature`, one sample per example and feature
or channel, divided by 1 - p.

It stands beside L0 to show the difference: here too a dropout rate is learned by gradient descent through a concrete
relaxation, but its multiplier is never exactly zero and its test-time value is one. Nothing is ever closed, and the
network that comes out has the size of the one that went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import DropoutGate, Site, gate_of, put_gate, sites, sites_of, weight_of


@dataclass(frozen=True)
class ConcreteDropout(Method):
    """Concrete dropout: one learned drop probability per layer.

    Args:
        examples: N, the number of training examples (60000: MNIST).
        length: l, the prior length scale; larger pulls weights and p down more.
        regression: the loss is that of a regression, so c = 2.
        p: initial drop probability, in (0, 1).
        temperature: of the soft drops.
        at: whose inputs: "inputs", or a selection such as "inputs:Linear".
        gate_lr: learning rate of logit p as a multiple of the weights'.

    Raises:
        ValueError: a number out of its range, or a place that is not at inputs.
    """

    goal: ClassVar[str | None] = "baseline"

    examples: int = 60_000
    length: float = 1e-2
    regression: bool = False
    p: float = 0.1
    temperature: float = 0.1
    at: At = Places(("inputs",))  # noqa: RUF009  # a frozen value
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "inputs")
        if not self.examples >= 1:
            validate.refuse(self, "examples", "must be at least 1")
        validate.within(self, "(0, 1)", "p")
        validate.positive(self, "temperature")
        validate.not_negative(self, "length", "gate_lr")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = sites(net, probe.wiring, self.at)
        modules = dict(net.named_modules())
        for site in found:
            weight = weight_of(net, site)
            gate = DropoutGate(
                site.shape[0],
                p=self.p,
                temperature=self.temperature,
                lr_scale=self.gate_lr,
                device=weight.device,
                dtype=weight.dtype,
            )
            put_gate(modules, site, gate)
        attached(net).notes[self] = found

    @property
    def has_penalty(self) -> bool:
        return True

    @property
    def needs_training(self) -> bool:
        return False

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        of_weights = self.length**2 / self.examples
        of_drops = (2 if self.regression else 1) / self.examples
        parts = []
        for site in sites_of(net, self):
            gate, weight = self._gate(net, site), weight_of(net, site)
            parts.append(of_weights * weight.pow(2).sum() * (1 + gate.logit.exp()))
            parts.append(-of_drops * gate.dense_shape[0] * gate.entropy())
        return torch.stack(parts).sum()

    def probabilities(self, net: nn.Module) -> dict[str, float]:
        """The learned p by layer."""
        return {site.layer: self._gate(net, site).p.item() for site in sites_of(net, self)}

    def _gate(self, net: nn.Module, site: Site) -> DropoutGate:
        gate = gate_of(net, site)
        assert isinstance(gate, DropoutGate)
        return gate
