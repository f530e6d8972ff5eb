"""Learning and compressing in turn: the augmented Lagrangian of weight sharing.

    minimise over w and the shared weights v   L(w)   subject to   w = v

(Carreira-Perpinan and Idelbayev, arXiv 1707.04319). In turns,

* learn:     descend  L(w) + sum_i mu s_i / 2 (w_i - v_i)^2 - lambda_i (w_i - v_i)
* compress:  v = codebooks fitted to w - lambda / (mu s), warm-started
* multiply:  lambda <- lambda - mu s (w - v),   mu <- a mu

With lambda = 0 throughout this is the quadratic-penalty method. s = 1, or h / mean(h) for curvatures h. A trust region
keeps |w - v| <= Delta after every step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paring.compression.training import Descent
from paring.compression.weight_sharing import Sharing


class Alternation:
    """The state of learning and compressing in turn, on one network.

    Attributes:
        net: holds the latent weights w.
        sharing: codebooks of v.
        mu: the penalty.
        radius: Delta; infinite for none.

    Args:
        net: trained on in place.
        sharing: fitted already.
        mu: first penalty.
        augmented: use multipliers.
        scale: s by name; 1 without.
        radius: Delta.
    """

    def __init__(
        self,
        net: nn.Module,
        sharing: Sharing,
        *,
        mu: float,
        augmented: bool = True,
        scale: Mapping[str, Tensor] | None = None,
        radius: float = math.inf,
    ) -> None:
        self.net, self.sharing, self.mu, self.augmented, self.radius = net, sharing, mu, augmented, radius
        self.scale = dict(scale) if scale is not None else None
        self.latent = {name: net.get_parameter(name) for name in sharing.shapes}
        self.multiplier = {name: torch.zeros_like(weight) for name, weight in self.latent.items()}
        self.shared: dict[str, Tensor] = {}
        self.read_shared()

    def read_shared(self) -> None:
        """Take v over from the codebooks."""
        self.shared = {name: v.to(self.latent[name].dtype) for name, v in self.sharing.weights().items()}

    def learn(self, descent: Descent, epochs: float) -> None:
        """Descend for a while, with the penalty's gradient added to the loss's.

        Args:
            descent: over the network's parameters.
            epochs: how long.
        """
        masks = {name: mask for name, mask in self.sharing.kept.items() if mask is not None}

        def before() -> None:
            for name, weight in self.latent.items():
                if weight.grad is None:
                    continue
                pull = (weight.detach() - self.shared[name]).mul_(self.mu)
                if self.scale is not None:
                    pull.mul_(self.scale[name])
                weight.grad.add_(pull)
                if self.augmented:
                    weight.grad.sub_(self.multiplier[name])
                if name in masks:
                    weight.grad.mul_(masks[name])

        descent.run(self.net, epochs, before=before, after=self._project)

    @torch.no_grad()
    def _project(self) -> None:
        if math.isfinite(self.radius):
            for name, weight in self.latent.items():
                v = self.shared[name]
                weight.copy_(torch.clamp(weight, v - self.radius, v + self.radius))

    def targets(self) -> dict[str, Tensor]:
        """W - lambda / (mu s), what the codebooks are fitted to."""
        if not self.augmented:
            return {name: weight.detach() for name, weight in self.latent.items()}
        return {
            name: weight.detach() - self.multiplier[name] / (self._weight(name) * self.mu)
            for name, weight in self.latent.items()
        }

    @torch.no_grad()
    def multiply(self, growth: float) -> None:
        """Take v over, move the multipliers, raise the penalty."""
        self.read_shared()
        if self.augmented:
            for name, weight in self.latent.items():
                self.multiplier[name] -= self.mu * self._weight(name) * (weight - self.shared[name])
        self.mu *= growth

    def distance(self) -> float:
        """Root of the mean squared w - v over all weights, over that of w."""
        apart = sum(float((w.detach() - self.shared[n]).double().square().sum()) for n, w in self.latent.items())
        size = sum(float(w.detach().double().square().sum()) for w in self.latent.values())
        return math.sqrt(apart / max(size, 1e-300))

    def compressed(self) -> nn.Module:
        """A copy of the network with v in place of w."""
        twin = copy.deepcopy(self.net).eval()
        self.sharing.write(twin)
        return twin

    def _weight(self, name: str) -> Tensor | float:
        return 1.0 if self.scale is None else self.scale[name]
