"""A gate that is a plain mask: zeros and ones that a method sets, nothing that is trained.

Methods move it by its verbs: `choose` which are open, `close` some, `exchange` some for others, `set_aside` the values of
what closes, `let_through` the gradients of closed weights (straight-through), and `freeze` it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Gate
from paring.select import exchange


class MaskGate(Gate):
    """One bit per element of `shape`.

    Attributes:
        mask: boolean tensor of `shape`; what is False is exactly zero for the network.
        dense: give closed weights the gradient they would have if they were open.
        factor: what multiplies the weights that are open.
        input_group: an N:M pattern in groups of so many inputs; 1 for none. Removal then keeps or takes whole groups.
        fixed: closed for good; only then does a closed element count as permanently closed.
        aside: of the weight's shape, the values that closed weights had, zero for open ones; None keeps none.

    Args:
        shape: what the gate multiplies.
        factor: see above.
        input_group: see above.
    """

    mask: Tensor
    aside: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        factor: float = 1.0,
        input_group: int = 1,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._dense = False
        self._fixed = False
        self._factor = factor
        self._input_group = input_group
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.register_buffer("aside", None)
        self._fresh: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.mask.shape

    @property
    def dense(self) -> bool:
        return self._dense

    @property
    def fixed(self) -> bool:
        return self._fixed

    @property
    def factor(self) -> float:
        return self._factor

    @property
    def input_group(self) -> int:
        return self._input_group

    @torch.no_grad()
    def choose(self, mask: Tensor) -> None:
        """Be open exactly where `mask`, of `shape`, is not zero."""
        self.mask.copy_(mask != 0)

    @torch.no_grad()
    def close(self, where: Tensor) -> None:
        """Close what the boolean `where`, of `shape`, names; the rest stays as it is."""
        self.mask.masked_fill_(where, False)

    @torch.no_grad()
    def exchange(self, magnitude: Tensor, growth: Tensor, fraction: float) -> None:
        """Close this fraction of the open weights, the lowest by `magnitude`, and open as many, the highest by `growth`.

        `take_fresh` then tells which were opened.
        """
        found = exchange(self.mask, magnitude, growth, fraction)
        self.mask.copy_(found.mask)
        self._fresh = found.fresh

    def take_fresh(self) -> Tensor | None:
        """What the last exchange opened, told once; None when there was none since."""
        fresh, self._fresh = self._fresh, None
        return fresh

    @torch.no_grad()
    def set_aside(self, weight: nn.Parameter, mask: Tensor | None = None) -> None:
        """Keep the values of closed weights from now on; with a mask, `choose` it: what opens gets its value back.

        Args:
            weight: on which the gate sits; it is zero afterwards where the gate is closed.
            mask: what is to be open; None: what is open now.
        """
        values = self.latent(weight)
        if mask is not None:
            self.choose(mask)
        self.aside = values.masked_fill(self.mask, 0.0)
        weight.copy_(values * self.mask)

    def let_through(self, dense: bool = True) -> None:
        """Give closed weights the gradient they would have if they were open, or no longer."""
        self._dense = dense

    def freeze(self, fixed: bool = True) -> None:
        """From now on what is closed is closed for good; False takes that back, for a further round."""
        self._fixed = fixed

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def prob_open(self) -> Tensor:
        return self.mask.to(torch.get_default_dtype())

    def value(self) -> Tensor:
        return self.prob_open() * self._factor

    def support(self) -> Tensor:
        return self.mask.clone()

    def permanently_closed(self) -> Tensor:
        return ~self.mask if self._fixed else super().permanently_closed()

    def see(self, weight: Tensor) -> Tensor:
        seen = weight * self.mask if self._factor == 1 else weight * (self.mask.to(weight.dtype) * self._factor)
        return weight + (seen - weight).detach() if self._dense and torch.is_grad_enabled() else seen

    def latent(self, weight: Tensor) -> Tensor:
        """The weight with the values that were put aside where it is closed."""
        return weight if self.aside is None else torch.where(self.mask, weight, self.aside)

    def fold(self, weight: Tensor) -> Tensor:
        return weight * self.mask * self._factor

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._dense, self._fixed])

    def set_extra_state(self, state: Any) -> None:
        self._dense, self._fixed = (bool(flag) for flag in state)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, dense={self._dense}, fixed={self._fixed}"
