"""Exponential moving average of a network, with a bias correction that is right.

    a_t = d · a_{t-1} + (1 − d) · θ_t,   a_0 = 0,   average = a_t / (1 − d^t)

The L0 authors start a at θ_0 and still divide by 1 − d^t, which leaves a weight d^t / (1 − d^t) on the initial
parameters: more than 1 after one epoch of MNIST. Floating-point buffers (BatchNorm statistics) are averaged as well;
parameters that no longer train (held gates) and integer buffers are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import gates, unwrapped


class Ema:
    """Moving average of all floating-point parameters and buffers of `net`.

    Args:
        net: the network to follow.
        decay: d in [0, 1).

    Raises:
        ValueError: the decay is outside [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"Ema(decay={decay}): must lie in [0, 1)")
        self.net = unwrapped(net)
        self.decay = decay
        self.updates = 0
        self._sums = {name: torch.zeros_like(value) for name, value in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.tensors(self.net)

    @staticmethod
    def tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What is averaged of a network, by name."""
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if value.is_floating_point():
                yield name, value.detach()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is now."""
        self.updates += 1
        pairs = [(self._sums[name], value) for name, value in self._tensors()]
        torch._foreach_lerp_([s for s, _ in pairs], [v for _, v in pairs], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the network holds the averages; afterwards its own values again, bit for bit."""
        if self.updates == 0:
            yield
            return
        still = {id(p) for _, _, gate in gates(self.net) if gate.frozen for p in gate.parameters()}
        frozen = {name for name, p in self.net.named_parameters() if not p.requires_grad or id(p) in still}
        scale = 1 / (1 - self.decay**self.updates)
        kept = {name: value.clone() for name, value in self._tensors()}
        try:
            for name, value in self._tensors():
                if name not in frozen:
                    value.copy_(self._sums[name] * scale)
            yield
        finally:
            for name, value in self._tensors():
                value.copy_(kept[name])

    def restart(self) -> None:
        """Forget everything: the next update is the first."""
        self.updates = 0
        for value in self._sums.values():
            value.zero_()

    def shrink(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """The network was cut: cut the averages alike, each to `cut(name, average)`."""
        self._sums = {name: cut(name, value) for name, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {"updates": self.updates, "sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.updates = state["updates"]
        for name, value in state["sums"].items():
            self._sums[name].copy_(value)
