"""What changes while a network trains and is no part of it: what was cut, multipliers, tensors of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

STATE_FIELDS = ("kept", "reads", "sizes", "multipliers", "tensors")


@dataclass
class TrainingState:
    """The state of one network's training; its plain form is part of a checkpoint.

    Attributes:
        kept: name of a tensor -> dimension -> indices of the original tensor that are left (sorted int64, CPU).
        reads: linear layer -> columns of its input that it reads, where it does not read all.
        sizes: norm without any tensor of its own -> features that it is left with.
        multipliers: places of a budget -> name of a cost -> its Lagrange multiplier, a number as a tensor.
        tensors: what methods of one's own keep, by name.
    """

    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    reads: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    multipliers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Nested dicts of tensors and numbers, copies."""
        return {name: _copied(getattr(self, name)) for name in STATE_FIELDS}

    def take_over(self, plain: Mapping[str, Any]) -> None:
        """Become what this plain form says; it was checked before."""
        for name in STATE_FIELDS:
            setattr(self, name, _copied(plain[name]))


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value
