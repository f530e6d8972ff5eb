"""What a method may ask about the network while it attaches."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import nn

from paring.graph import Wiring, wiring


class NetworkProbe:
    """Answers a method's questions about the network, capturing it only when asked."""

    def __init__(self, net: nn.Module, example: tuple[Any, ...]) -> None:
        self._net = net
        self._example = example

    @property
    def example(self) -> tuple[Any, ...]:
        """Example positional arguments of the network."""
        return self._example

    @cached_property
    def wiring(self) -> Wiring:
        """Layers of the network and who reads whom."""
        return wiring(self._net, self._example)
