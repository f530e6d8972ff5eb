"""The gate: a small module in the network that multiplies a weight or a unit and owns all state of that decision.

A gate answers four questions: what the network sees (`forward`), how likely it is open (`prob_open`, differentiable,
used while training), whether it would be open if training stopped now (`support`, used when reporting), and whether
it can never open again (`permanently_closed`, the only thing that shrinking during training looks at).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which a gate of this type draws its noise: float32 or better, as half precision has too few values.

    A uniform number in bfloat16 is a multiple of 1/256: an event of probability 0.002 would never happen.
    """
    return torch.promote_types(dtype, torch.float32)


class Gate(nn.Module, ABC):
    """Multiplier for the units, inputs or weights of one layer.

    Attributes:
        lr_scale: learning rate of the gate's parameters as a multiple of the weights' learning rate.
        decay: whether weight decay applies to the gate's parameters (almost never).
    """

    lr_scale: float = 1.0
    decay: bool = False
    _dense_shape: torch.Size | None = None

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of what the gate multiplies: (units,), (inputs,) or the weight's shape."""

    @abstractmethod
    def forward(self, batch: int | None = None) -> Tensor:
        """The multiplier the network sees now.

        Args:
            batch: number of examples, for gates that draw one sample per example; ignored by the others.

        Returns:
            A tensor of `shape`, or of `(batch, *shape)` when the gate samples per example and is in training mode.
        """

    @abstractmethod
    def prob_open(self) -> Tensor:
        """Differentiable probability that the gate is open, of `shape`, in [0, 1]."""

    @abstractmethod
    def value(self) -> Tensor:
        """The multiplier used at test time, of `shape`; exactly zero where the gate is closed."""

    def support(self) -> Tensor:
        """Boolean tensor of `shape`: open if training stopped now."""
        return self.value() != 0

    def permanently_closed(self) -> Tensor:
        """Boolean tensor of `shape`: closed and never able to open again. Nothing is by default."""
        return torch.zeros_like(self.support())

    def see(self, weight: Tensor) -> Tensor:
        """What the network sees instead of the weight, for a gate at "weights"; their product unless overridden."""
        multiplier: Tensor = self()
        return weight * multiplier.to(weight.dtype)

    def fold(self, weight: Tensor) -> Tensor:
        """What `see` is at test time: it takes the weight's place when the gate is taken out."""
        return weight * self.value().to(weight.dtype)

    @property
    def noisy(self) -> bool:
        """Whether `variance` may return something."""
        return False

    def variance(self, weight: Tensor) -> Tensor | None:
        """Variance of Gaussian noise on what `see` returns, now; None, the default, for no noise.

        The layer does not draw weights but its outputs (local reparametrisation, Kingma et al. 2015).
        """
        return None

    def constrain(self) -> None:
        """Bring the parameters back into their allowed range after an optimizer step. Nothing by default."""

    def renew(self) -> None:
        """Forget the sample of this step, where one is kept for several modules. Nothing by default."""

    @property
    def frozen(self) -> bool:
        """Whether the gate's parameters have stopped moving for good."""
        return False

    def rest(self) -> None:
        """Take the gradients of a frozen gate away, so that no optimizer moves it by momentum. Nothing by default."""

    def constant(self) -> Tensor:
        """The part of the multiplier that is final, of `shape`: `note_folded` says that the weights hold it. Ones by default."""
        return torch.ones_like(self.value())

    def note_folded(self) -> None:
        """The weights were multiplied by `constant`; from now on the gate shows one in its place. Nothing by default."""

    @property
    def transparent(self) -> bool:
        """Whether the multiplier is one everywhere and for good, so that a layer need not apply it."""
        return False

    @property
    def per_example(self) -> bool:
        """Whether training draws one sample per example instead of one per minibatch."""
        return False

    @property
    def dense_shape(self) -> torch.Size:
        """`shape` before anything was cut out of the network."""
        return self.shape if self._dense_shape is None else self._dense_shape

    def note_cut(self, before: torch.Size, kept: Mapping[int, Tensor]) -> None:
        """The gate's tensors were cut: along these dimensions of the shape `before` only these indices are left."""
        if self._dense_shape is None:
            self._dense_shape = before
        for dim, keep in kept.items():
            earlier = getattr(self, f"kept_{dim}", None)
            self.register_buffer(f"kept_{dim}", keep if earlier is None else earlier[keep], persistent=False)

    def part(self, value: Tensor) -> Tensor:
        """What is left of `value`, whose last dimensions are `dense_shape`."""
        for dim, keep in self._kept():
            value = value.index_select(value.dim() - len(self.dense_shape) + dim, keep.to(value.device))
        return value

    def whole(self, value: Tensor) -> Tensor:
        """`value` of `shape`, spread over `dense_shape`; zero where the gate was cut out. Differentiable."""
        for dim, keep in self._kept():
            size = list(value.shape)
            size[dim] = self.dense_shape[dim]
            spread = torch.zeros(size, dtype=value.dtype, device=value.device)
            value = spread.index_copy(dim, keep.to(value.device), value)
        return value

    def _kept(self) -> list[tuple[int, Tensor]]:
        if self._dense_shape is None:
            return []
        found = ((dim, getattr(self, f"kept_{dim}", None)) for dim in range(len(self._dense_shape)))
        return [(dim, keep) for dim, keep in found if keep is not None]
