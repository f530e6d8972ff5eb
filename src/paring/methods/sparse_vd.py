"""Sparse variational dropout (Molchanov, Ashukha, Vetrov, ICML 2017, arXiv 1701.05369).

    minimise over θ and log σ²   E[loss(w)] + rate · KL(q(w) ‖ log-uniform prior),     w ~ N(θ, σ²)

with the paper's approximation of the KL, log σ² as the parameter and outputs drawn instead of weights. At the end a
weight whose log α = log σ² - log θ² is above the threshold is zero, and the others are θ.

The KL is warmed up: its rate grows linearly from 0 over the first part of training, or too much closes at once.

Differences from the authors' code, on purpose: the noise's variance is σ² itself, log α being limited only in the KL
and in the decision; the KL has the paper's constants, not rounded ones; closed weights stay in training until the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import GaussianGate, gate_of, put_gate, read_weights, sites_of, weight_of, weight_sites


@dataclass(frozen=True)
class SparseVD(Method):
    """Sparse variational dropout.

    Args:
        rate: of the KL; 1/N for N training examples and a loss that is a mean over examples (1/60000: MNIST).
        warmup: first fraction of training, in [0, 1], in which the rate grows from 0.
        threshold: a weight is closed when its log α is above it.
        log_sigma2: initial log σ².
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        gate_lr: learning rate of log σ² as a multiple of the weights'.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    rate: float = 1 / 60_000
    warmup: float = 0.25
    threshold: float = 3.0
    log_sigma2: float = -10.0
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.not_negative(self, "rate", "gate_lr")
        validate.within(self, "[0, 1]", "warmup", what="a fraction of training,")
        if not -8 <= self.threshold < 8:
            raise ValueError(f"SparseVD(threshold={self.threshold}): must lie in [-8, 8), where log α is kept")
        validate.finite(self, "log_sigma2")

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = weight_sites(net, probe, self.at)
        modules = dict(net.named_modules())
        for site in found:
            gate = GaussianGate(
                weight_of(net, site), log_sigma2=self.log_sigma2, threshold=self.threshold, lr_scale=self.gate_lr
            )
            put_gate(modules, site, gate)
        attached(net).notes[self] = found
        if self.rate == 0:
            attached(net).say(
                "SparseVD(rate=0) asks for nothing to go: the noise of a weight grows only by its KL, which nobody charges. "
                "Give rate=1/N for N training examples"
            )

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        self.rate_at(clock)
        read_weights(net, sites_of(net, self))

    def rate_at(self, clock: Clock) -> float:
        """The rate at this time.

        Raises:
            ValueError: it grows, but the length of training is unknown.
        """
        if self.warmup == 0:
            return self.rate
        if clock.fraction is None:
            raise ValueError(
                f"SparseVD(warmup={self.warmup}) is a fraction of training: tell attach how long that is with "
                "steps=..., or give warmup=0"
            )
        return self.rate * min(1.0, clock.fraction / self.warmup)

    @property
    def has_penalty(self) -> bool:
        return self.rate > 0

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        if clock.fraction is None or clock.fraction >= self.warmup:
            return None
        return f"the rate of its KL grows for the first {self.warmup:.0%} of training and stands at {self.rate_at(clock):.2g}, not {self.rate:.2g}"

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        rate = self.rate_at(clock)
        parts = []
        for site in sites_of(net, self):
            gate = gate_of(net, site)
            assert isinstance(gate, GaussianGate)
            parts.append(gate.divergence(weight_of(net, site)).sum())
        return rate * torch.stack(parts).sum()

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        read_weights(net, sites_of(net, self))

    def finish(self, net: nn.Module) -> None:
        read_weights(net, sites_of(net, self))
