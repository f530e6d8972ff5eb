"""Does a network run the same operations in train and in eval mode? Then one capture serves both.

It is shown on a copy, which runs once in each mode on the batch that a capture would see: the same tensor operations on
the same tensors with the same numbers, the same results, the same gradients of all parameters (those that are frozen
now too); no buffer changes, and nobody draws a random number. A network that branches on values cannot be captured, so
one run shows all operations; gradients tell apart what changes the way back alone.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from paring.analysis.autocast import own_forward, plainly
from paring.analysis.capture import untouched_random
from paring.core import Inputs


def same_in_both_modes(net: nn.Module, inputs: Inputs) -> bool:
    """Does the network do the same in both modes, as far as a capture can see? False also where it does not run.

    net: stays as it is, and so do the random states of the process. Frozen modules of a network in train mode count as
    in eval mode there.
    """
    if any(_changes(part) for part in net.modules()):
        return False
    with untouched_random(), _untouched_python_random(), plainly():
        try:
            own = copy.deepcopy(net).requires_grad_(True)
            batch = inputs.cycled(2)
            one = _watched(own, batch)
            other = _watched(own.train(not net.training), batch)
            return one is not None and other is not None and one.equals(other)
        except Exception:  # whatever the network's own code raises; the capture says it to the user
            return False


def _changes(part: nn.Module) -> bool:
    """Is it a stock module that is known to be another function in train mode?"""
    dropout = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
    return dropout or (isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None)


@dataclass
class _Seen(TorchDispatchMode):
    """What a run did: operations with tensors by the order in which they turned up, results, gradients."""

    calls: list[object] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)  # an id is one tensor's as long as that lives
    results: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs, result))
        self.calls.append((func, spec, [self._number(leaf) for leaf in leaves]))
        return result

    def _number(self, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self.numbers:
            self.numbers[id(leaf)] = len(self.alive)
            self.alive.append(leaf)
        return "tensor", self.numbers[id(leaf)], leaf.dtype, tuple(leaf.shape)

    def equals(self, other: _Seen) -> bool:
        """Were both runs the same, bit by bit?"""
        if len(self.calls) != len(other.calls) or len(self.results) != len(other.results):
            return False
        return all(a == b for a, b in zip(self.calls, other.calls, strict=True)) and all(
            _equal(a, b) for a, b in zip(self.results, other.results, strict=True)
        )


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a, b)
    return type(a) is type(b) and a == b


def _watched(net: nn.Module, inputs: Inputs) -> _Seen | None:
    """One run in the mode that the network is in; None where it drew random numbers or changed a buffer."""
    parameters = list(net.parameters())
    seen = _Seen()
    for tensor in (*parameters, *net.buffers(), *inputs.tensors):
        seen._number(tensor)
    buffers = [buffer.clone() for buffer in net.buffers()]
    before = _random_states()
    with own_forward(net), torch.enable_grad(), seen:
        out = inputs.call(net)
    if _random_states() != before or not all(map(torch.equal, buffers, net.buffers())):
        return None
    leaves, spec = pytree.tree_flatten(out)
    seen.results += [
        spec,
        *(leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf for leaf in leaves),
    ]
    learns = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if learns and parameters:
        generator = torch.Generator().manual_seed(0)
        along = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in learns]
        floating = [p for p in parameters if p.requires_grad]
        seen.results += torch.autograd.grad(learns, floating, along, allow_unused=True)
    seen.alive.clear()
    return seen


def _random_states() -> list[object]:
    """Random states of torch (on all devices in use), numpy and Python, to be compared."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    torches = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the state that forwards draw from
    return [*(state.tolist() for state in torches), kind, np.asarray(keys).tolist(), *rest, random.getstate()]


@contextmanager
def _untouched_python_random() -> Iterator[None]:
    """A context after which the random states of Python and numpy are as before."""
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002
