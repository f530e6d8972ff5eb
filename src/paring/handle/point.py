"""The rewind point: a network's weights as they were after so many steps, kept to go back to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from paring.core import gates


def own_state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are no gate's, by name, as they are (not copies); running statistics included."""
    gated = {id(t) for _, _, gate in gates(net) for t in (*gate.parameters(), *gate.buffers())}
    return {
        name: value
        for name, value in (*net.named_parameters(), *net.named_buffers())
        if id(value) not in gated and isinstance(value, Tensor)
    }


class Point:
    """The state of everything but the gates at one moment.

    Args:
        values: copies of it by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = dict(values)

    @classmethod
    def of(cls, net: nn.Module) -> Point:
        """The network as it is now."""
        return cls({name: value.detach().clone() for name, value in own_state(net).items()})

    @torch.no_grad()
    def restore(self, net: nn.Module) -> None:
        """Bring the network back, gates excepted."""
        for name, value in own_state(net).items():
            value.copy_(self.values[name])

    def shrink(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """The network was cut: cut what is kept alike."""
        self.values = {name: cut(name, value) for name, value in self.values.items()}
