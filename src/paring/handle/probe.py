"""What a method may ask about the network while it attaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from paring.graph import Wiring, wiring


class NetworkProbe:
    """Answers a method's questions about the network, capturing it only when asked."""

    def __init__(
        self,
        net: nn.Module,
        example: tuple[Any, ...],
        loss: Callable[[Callable[..., Any]], Tensor] | None = None,
    ) -> None:
        self._net = net
        self._example = example
        self._loss = loss

    @property
    def example(self) -> tuple[Any, ...]:
        """Example positional arguments of the network."""
        return self._example

    @cached_property
    def wiring(self) -> Wiring:
        """Layers of the network and who reads whom."""
        return wiring(self._net, self._example)

    def loss(self, net: Callable[..., Any]) -> Tensor:
        """Scalar loss of a network (or any function of its arguments) on a batch of training data."""
        if self._loss is None:
            raise ValueError(
                "this method scores weights by the loss before training starts: tell attach a loss, for example "
                "loss=lambda net: F.cross_entropy(net(x), y) with a batch (x, y) of training data"
            )
        return self._loss(net)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loss": None}
