"""What a method may ask about the network while it attaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor, nn

from paring.analysis import Wiring, wiring
from paring.core import Inputs, gates
from paring.cost import CostModel
from paring.run.distributed.parallel import from_first

T = TypeVar("T")


class NetworkProbe:
    """Answers a method's questions about the network, capturing it only when asked."""

    def __init__(
        self,
        net: nn.Module,
        example: Inputs,
        loss: Callable[[Callable[..., Any]], Tensor] | None = None,
    ) -> None:
        self._net = net
        self._example = example
        self._loss = loss

    @property
    def example(self) -> Inputs:
        """Example arguments of the network."""
        return self._example

    @cached_property
    def wiring(self) -> Wiring:
        """Layers of the network and who reads whom."""
        return wiring(self._net, self._example)

    @cached_property
    def costs(self) -> CostModel:
        """What the network costs, gates not counted."""
        gated = {id(p) for _, _, gate in gates(self._net) for p in gate.parameters()}
        own = sum(p.numel() for p in self._net.parameters() if id(p) not in gated)
        return CostModel(self.wiring, extra=own - int(CostModel(self.wiring)().parameters))

    def loss(self, net: Callable[..., Any]) -> Tensor:
        """Scalar loss of a network (or any function of its arguments) on a batch of training data."""
        if self._loss is None:
            raise ValueError(
                "this method scores weights by the loss before training starts: tell attach a loss, for example "
                "loss=lambda net: F.cross_entropy(net(x), y) with a batch (x, y) of training data"
            )
        return self._loss(net)

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first of several processes decides, in all of them."""
        return from_first(decide)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loss": None}
