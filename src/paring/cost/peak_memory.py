"""Bytes that are held at the peak of one forward pass: weights, inputs, and what is computed and not yet let go.

Every operation is watched, and every storage counted from when it appears until nobody holds it; views count once. What a
kernel takes for itself while it runs is not seen. Without gradients, since with them everything is held.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from paring.core import Example, Inputs
from paring.core.evaluating import evaluating


class _Held(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Count the storage of this tensor, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int, _: object) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size


@torch.no_grad()
def peak_memory(net: nn.Module, example: Example) -> int:
    """Bytes at the peak of one pass in evaluation mode, without gradients, at the example's batch size.

    Args:
        net: any network.
        example: what it takes: a tensor, a tuple of arguments or a mapping of keyword arguments.
    """
    inputs, held = Inputs.of(example), _Held()
    with evaluating(net):
        for tensor in [*net.parameters(), *net.buffers(), *inputs.tensors]:
            held.note(tensor)
        with held:
            net(*inputs.args, **inputs.kwargs)
    return held.peak
