"""Which positions of a batch of sequences are padding: read off the masks that a network is called with.

Known are `attention_mask` (transformers: 1 counts) and `key_padding_mask`, also with a word before it (torch: True is padding),
of shape (batch, length), for the network or any module in it, by name or place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Padding:
    """What the last mask said.

    Attributes:
        real: (batch, length), True at positions that are no padding; None where no mask was given.
    """

    real: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """The last dimension of x at every position that counts, (rows, columns): all of them, unless x lies along the mask."""
        if self.real is not None and x.shape[:-1] == self.real.shape:
            x = x[self.real.to(x.device)]
        return x.reshape(-1, x.shape[-1])


@contextmanager
def watched_padding(net: nn.Module) -> Iterator[Padding]:
    """While this is on, masks that the network is called with, or its modules, are noted."""
    padding, handles = Padding(), []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        padding.real = None

    handles.append(net.register_forward_pre_hook(begin, with_kwargs=True))
    for module in net.modules():
        places = {
            place: name for place, name in enumerate(inspect.signature(module.forward).parameters) if _is_mask(name)
        }
        if not places:
            continue

        def note(
            _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], places: Mapping[int, str] = places
        ) -> None:
            for place, name in places.items():
                value = args[place] if place < len(args) else kwargs.get(name)
                if isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point():
                    padding.real = value != 0 if name == "attention_mask" else value == 0

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield padding
    finally:
        for handle in handles:
            handle.remove()


def _is_mask(name: str) -> bool:
    return name == "attention_mask" or name.endswith("key_padding_mask")
