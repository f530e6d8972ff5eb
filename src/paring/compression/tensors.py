"""Which tensors of a network a compressor works on, and which it leaves alone.

Weights are floating-point parameters of two or more dimensions, tied ones once. Binary ones (every entry ±s, with one s
for the tensor or one for each row) are left alone: they are as small as they get, and ±1 has to stay ±1. What is left,
biases, norms and buffers, is small.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from paring.core import bare_state


def is_binary(weight: Tensor) -> bool:
    """Whether every entry is ±s, with s > 0 the same for the tensor or for each row (of more than one entry)."""
    size = weight.detach().abs()
    if not size.numel():
        return False
    rows = size.reshape(len(size), -1) if size.dim() and size[0].numel() > 1 else size.reshape(1, -1)
    return bool((rows > 0).all()) and bool((rows == rows[:, :1]).all())


def weights_of(net: nn.Module, *, binary: bool = False) -> dict[str, nn.Parameter]:
    """The weights by name, in the order of the network.

    Args:
        net: any module.
        binary: whether those with two values ±s are listed too.
    """
    return {
        name: parameter
        for name, parameter in net.named_parameters()
        if parameter.dim() >= 2 and parameter.is_floating_point() and (binary or not is_binary(parameter))
    }


def small_of(net: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and buffers of fewer than two dimensions by name: biases, norms, statistics."""
    named = [*net.named_parameters(), *net.named_buffers()]
    state = net.state_dict(keep_vars=True)
    return {n: t for n, t in named if n in state and t.dim() < 2 and t.is_floating_point()}


@torch.no_grad()
def halved(net: nn.Module) -> nn.Module:
    """A copy whose small tensors have values that float16 holds; those that overflow it stay as they are."""
    twin = copy.deepcopy(net)
    for tensor in small_of(twin).values():
        if tensor.dtype in (torch.float32, torch.float64):
            narrow = tensor.half().to(tensor.dtype)
            if bool(narrow.isfinite().all()):
                tensor.copy_(narrow)
    return twin


def float_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are in memory, tied ones once."""
    return sum(t.numel() * t.element_size() for t in unique(net).values())


def unique(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network by name, tied tensors once."""
    tied = ties(net)
    return {name: value for name, value in bare_state(net).items() if name not in tied}


def ties(net: nn.Module) -> dict[str, str]:
    """Further names of the same tensor -> the name that comes first."""
    first: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, value in bare_state(net).items():
        place = (value.untyped_storage().data_ptr(), value.storage_offset())
        key = (*place, tuple(value.shape), value.stride(), value.dtype)
        owner = first.setdefault(key if value.numel() else name, name)
        if owner != name:
            found[name] = owner
    return found


@torch.no_grad()
def on_grid(net: nn.Module, bits: int) -> nn.Module:
    """A copy with its biases, norms and other small parameters on grids of so many bits; statistics stay as they are.

    Args:
        net: any module.
        bits: at least 2.
    """
    twin = copy.deepcopy(net)
    for tensor in small_of(twin).values():
        if isinstance(tensor, nn.Parameter):
            tensor.copy_(gridded(tensor, bits))
    return twin


def gridded(tensor: Tensor, bits: int) -> Tensor:
    """The nearest multiples of a step, at most 2^bits - 1 of them around zero; the step is a float16.

    Args:
        tensor: any shape, finite.
        bits: at least 2.
    """
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    step = torch.tensor(largest / (2 ** (bits - 1) - 1)).half().to(tensor.dtype)
    if not 0 < float(step) < float("inf"):
        return tensor.detach().clone()
    return ((tensor.detach() / step).round() * step).half().to(tensor.dtype) + 0.0
