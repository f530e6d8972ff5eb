"""Layers that only answer: made for one machine out of a network that trains, is saved and is exported in their place."""

from __future__ import annotations

from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn


class AnswersOnly(nn.Module):
    """A module without gradients, train mode, state dict or pickle.

    Attributes:
        instead: what to do when one of these is asked for; the end of a sentence.
        error: the exception that says so.
    """

    instead = "take the network that it was made from"
    error: type[Exception] = ValueError

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def refuse(self, what: str) -> NoReturn:
        """Raise: `what` is the beginning of the sentence."""
        raise self.error(f"{what}: {self.instead}")

    def refuse_gradient(self, x: Tensor) -> None:
        """Raise where a gradient would have to go through to `x`."""
        if x.requires_grad and torch.is_grad_enabled():
            self.refuse(f"{type(self).__name__} has no gradient, but its input asks for one")

    def train(self, mode: bool = True) -> Self:
        """Eval mode only.

        Raises:
            ValueError: or a class of it: train mode is asked for.
        """
        if mode:
            self.refuse(f"{type(self).__name__} cannot be trained")
        return super().train(False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.refuse(f"{type(self).__name__} {prefix.rstrip('.')!r} has no state dict")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.refuse(f"{type(self).__name__} cannot be pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        held = {name: dict(value) if isinstance(value, dict) else value for name, value in self.__dict__.items()}
        new.__dict__.update(held)  # numbers are shared: nobody writes to them
        return new
