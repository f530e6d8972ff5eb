"""Soft threshold reparameterization (Kusupati et al., ICML 2020, arXiv 2002.03231), "STR".

    w̃ = sign(w) relu(|w| - σ(s)),    one s per layer, trained with the weights

There is no penalty: weight decay on s pulls it up from s_init towards 0, the loss holds against it, and each layer
finds its own sparsity. So the optimizer's weight decay decides how much closes; `run.parameter_groups(lr, weight_decay)`
gives it to the thresholds too. An s far below zero (-3200 for ResNet-50 on ImageNet) has no gradient at first;
decay alone brings it in, which is the paper's warm-up and needs as many steps. The default, -5 (a threshold of 0.0067), has
one that is large enough to move it in short trainings too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import Site, SoftThresholdGate, gate_of, put_gate, read_weights, sites_of, weight_of, weight_sites


@dataclass(frozen=True)
class STR(Method):
    """Soft thresholds that are trained, one per layer.

    Args:
        s_init: initial parameter of every threshold σ(s); -3200 is the paper's for 90 % sparsity of ResNet-50.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        gate_lr: learning rate of the thresholds as a multiple of the weights'.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    s_init: float = -5.0
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.finite(self, "s_init")
        validate.not_negative(self, "gate_lr")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = weight_sites(net, probe, self.at)
        modules = dict(net.named_modules())
        for site in found:
            gate = SoftThresholdGate(weight_of(net, site), s=self.s_init, lr_scale=self.gate_lr)
            put_gate(modules, site, gate)
        attached(net).notes[self] = found

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        read_weights(net, sites_of(net, self))

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        if clock.step == 1:
            self._check(net, opt)
        read_weights(net, sites_of(net, self))

    def finish(self, net: nn.Module) -> None:
        read_weights(net, sites_of(net, self))

    def thresholds(self, net: nn.Module) -> dict[str, float]:
        """σ(s) by layer."""
        return {site.layer: self._gate(net, site).threshold.item() for site in sites_of(net, self)}

    def _check(self, net: nn.Module, opt: torch.optim.Optimizer) -> None:
        """Refuse thresholds that nothing could ever move."""
        groups = [group for group in opt.param_groups if group.get("weight_decay", 0)]
        if any(str(group.get("name", "")).startswith("gates") for group in groups):
            return
        decayed = {id(p) for group in groups for p in group["params"]}
        for site in sites_of(net, self):
            s = self._gate(net, site).s
            if id(s) not in decayed and torch.sigmoid(s).item() == 0:
                raise ValueError(
                    f"the threshold of '{site.layer}' has no gradient at s = {s.item():g} and the optimizer gives it "
                    "no weight decay, so nothing would ever be pruned: build the optimizer with "
                    "run.parameter_groups(lr=..., weight_decay=...), or start at STR(s_init=-10)"
                )

    def _gate(self, net: nn.Module, site: Site) -> SoftThresholdGate:
        gate = gate_of(net, site)
        assert isinstance(gate, SoftThresholdGate)
        return gate
