"""The rewind point: a network's weights as they were after so many steps, kept to go back to."""

from __future__ import annotations

from collections.abc import Callable

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

    Attributes:
        values: copies of it by name; None before that moment, or when there is none.
    """

    values: dict[str, Tensor] | None = None

    def keep(self, net: nn.Module, *, buffers: bool = True) -> None:
        """Take the network as it is now; without `buffers` those kept so far stay."""
        now = {name: value.detach().clone() for name, value in own_state(net).items()}
        if not buffers and self.values is not None:
            now |= {name: self.values[name] for name, _ in net.named_buffers() if name in self.values}
        self.values = now

    @torch.no_grad()
    def restore(self, net: nn.Module) -> None:
        """Bring the network back, gates excepted."""
        assert self.values is not None
        for name, value in own_state(net).items():
            value.copy_(self.values[name])

    def shrink(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """The network was cut: cut what is kept alike."""
        if self.values is not None:
            self.values = {name: cut(name, value) for name, value in self.values.items()}
