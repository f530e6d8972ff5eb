"""Gates at "weights" that depend on the weight itself: soft thresholds, variational dropout.

The layer gives such a gate its weight whenever it computes (`see`, `fold`, `variance`). For what is asked without it
(`value`, `support`) the gate keeps a copy, which its method refreshes after every step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from paring.core import Gate
from paring.gates.masking import weight_of
from paring.gates.openness import gate_of
from paring.gates.place import Site


class ReadingGate(Gate):
    """A gate whose answer follows from the weight and from what the gate itself holds.

    Attributes:
        weight: copy of the weight when it was last read.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @abstractmethod
    def kept(self, weight: Tensor) -> Tensor:
        """Boolean: which of these weights would stay if training stopped now."""

    def support(self) -> Tensor:
        return self.kept(self.weight)

    def prob_open(self) -> Tensor:
        """The support as numbers: nothing here is open by chance, and the method has a gradient of its own."""
        return self.support().to(self.weight.dtype)

    @torch.no_grad()
    def read(self, weight: Tensor) -> None:
        """Take a fresh copy of the weight."""
        self.weight.copy_(weight)


def read_weights(net: nn.Module, found: Sequence[Site]) -> None:
    """Let every `ReadingGate` at these sites read its weight."""
    for site in found:
        cast(ReadingGate, gate_of(net, site)).read(weight_of(net, site))
