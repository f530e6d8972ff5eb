"""What staying open costs: a price per parameter or MAC (the λ of the L0 paper, eq. 12 and 16)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from paring.core import validate
from paring.gates import Site, gate_of
from paring.gates.relax import expected_l0
from paring.methods.by_layer import Pairs, pairs_of, value_at

Of = Literal["params", "macs"]


@dataclass(frozen=True)
class Price:
    """λ · Σ_g |g| · P(gate g is open), with |g| the parameters (or MACs) that the gate switches off.

    The paper writes λ = 0.1/N with N the number of training examples, because its loss is the mean over examples.

    Args:
        rate: λ; not negative.
        of: what |g| counts, "params" (the paper) or "macs" (per example).
        layers: rates for single layers, by name or pattern, first match wins; the paper's "λ sep.". A mapping, or
            pairs `(pattern, rate)`.

    Raises:
        ValueError: a negative rate, or an unknown `of`.
    """

    rate: float = 0.0
    of: Of = "params"
    layers: Pairs = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", pairs_of(self.layers))
        for name, rate in (("rate", self.rate), *pairs_of(self.layers)):
            if not (rate >= 0 and math.isfinite(rate)):
                raise ValueError(f"Price: the rate of {name!r} is {rate}; a price is a number that is not negative")
        object.__setattr__(self, "rate", float(self.rate))
        validate.one_of(self, "of", ("params", "macs"))

    def at(self, *layers: str) -> float:
        """The rate for this layer, or for a group of layers: that of the first pattern that matches any of them."""
        return value_at(self.layers, layers, self.rate)

    def penalty(self, net: nn.Module, sites: Iterable[Site]) -> Tensor | None:
        """The differentiable price of the network as it stands; None when everything is free."""
        total: Tensor | None = None
        for site in sites:
            weight = self.at(*site.layers) * (site.size if self.of == "params" else site.macs)
            if weight == 0.0:
                continue
            part = weight * expected_l0(gate_of(net, site).prob_open(), 1.0)
            total = part if total is None else total + part
        return total
