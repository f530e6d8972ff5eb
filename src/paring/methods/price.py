"""What staying open costs: a price per parameter or MAC (the λ of the L0 paper, eq. 12 and 16)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from paring.gates import Site, gate_of

Of = Literal["parameters", "macs"]


@dataclass(frozen=True)
class Price:
    """λ · Σ_g |g| · P(gate g is open), with |g| the parameters (or MACs) that the gate switches off.

    The paper writes λ = 0.1/N with N the number of training examples, because its loss is the mean over examples.

    Args:
        rate: λ; not negative.
        of: what |g| counts, "parameters" (the paper) or "macs" (per example).
        layers: rates for single layers, by name or pattern, first match wins; the paper's "λ sep.". A mapping, or
            pairs `(pattern, rate)`.

    Raises:
        ValueError: a negative rate, or an unknown `of`.
    """

    rate: float = 0.0
    of: Of = "parameters"
    layers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.layers, Mapping):
            object.__setattr__(self, "layers", tuple(self.layers.items()))
        else:
            object.__setattr__(self, "layers", tuple((str(name), float(rate)) for name, rate in self.layers))
        for name, rate in (("rate", self.rate), *self.layers):
            if not (rate >= 0 and math.isfinite(rate)):
                raise ValueError(f"Price: the rate of {name!r} is {rate}; a price is a number that is not negative")
        object.__setattr__(self, "rate", float(self.rate))
        if self.of not in ("parameters", "macs"):
            raise ValueError(f"Price(of={self.of!r}): choose 'parameters' or 'macs'")

    def at(self, *layers: str) -> float:
        """The rate for this layer, or for a group of layers: that of the first pattern that matches any of them."""
        for pattern, rate in self.layers:
            if any(fnmatchcase(layer, pattern) for layer in layers):
                return rate
        return self.rate

    def penalty(self, net: nn.Module, sites: Iterable[Site]) -> Tensor | None:
        """The differentiable price of the network as it stands; None when everything is free."""
        total: Tensor | None = None
        for site in sites:
            weight = self.at(*site.layers) * (site.size if self.of == "parameters" else site.macs)
            if weight == 0.0:
                continue
            part = weight * gate_of(net, site).chance().sum()
            total = part if total is None else total + part
        return total
