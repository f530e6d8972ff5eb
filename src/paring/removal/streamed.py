"""A large network computed in another dtype, part by part, so that no second network of that dtype is held."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = 16  # how finely a network is cut, at least
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # read what they do not call
_HOLDERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # are never called themselves


def sharing(net: nn.Module, own: Collection[str] = (), dtype: torch.dtype | None = None) -> nn.Module:
    """A copy whose parameters lie in the same memory, but for those named `own`, which are its own; buffers are copied.

    dtype: of the `own` ones; as they are by default.
    """
    memo: dict[int, Any] = {}
    named = list(net.named_parameters(remove_duplicate=False))  # a tied one is its own if any of its names is
    apart = {id(parameter) for name, parameter in named if name in own}
    for _, parameter in named:
        held = parameter.detach()
        if id(parameter) in apart:
            held = held.to(dtype or held.dtype, copy=True)
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(held, requires_grad=parameter.requires_grad)
    return copy.deepcopy(net, memo)


def streamed(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let `net` compute in `dtype`: each part casts its parameters when it is called, and drops them afterwards.

    What a forward does to its parameters is lost. A network that reads parameters of a module without calling it fails.
    """
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    limit = sum(p.numel() for p in net.parameters()) // _PARTS
    for part, parameters in _parts(net, limit):
        if type(part) is nn.Embedding and part.max_norm is None:
            part.register_forward_hook(_cast_output(dtype))
        else:
            before, after = _swap(parameters, dtype)
            part.register_forward_pre_hook(before)
            part.register_forward_hook(after, always_call=True)
    return net


def _parts(module: nn.Module, limit: int) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules that are cast whole, and of larger ones their own parameters."""
    whole = list(module.parameters())
    small = isinstance(module, _WHOLE) or not any(module.children()) or sum(p.numel() for p in whole) <= limit
    if whole and small and not isinstance(module, _HOLDERS):
        return [(module, whole)]
    own = list(module.parameters(recurse=False))
    found = [(module, own)] if own and not isinstance(module, _HOLDERS) else []
    for child in module.children():
        found += _parts(child, limit)
    return found


def _swap(parameters: list[nn.Parameter], dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    kept: list[list[Tensor]] = []  # a module may be called while it is being called

    def before(module: nn.Module, args: object) -> None:
        kept.append([p.data for p in parameters])
        for p in parameters:
            if p.is_floating_point():
                p.data = p.data.to(dtype, copy=True)

    def after(module: nn.Module, args: object, out: object) -> None:
        for p, held in zip(parameters, kept.pop(), strict=True):
            p.data = held

    return before, after


def _cast_output(dtype: torch.dtype) -> Callable[..., Tensor]:
    def cast(module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out.to(dtype)

    return cast
