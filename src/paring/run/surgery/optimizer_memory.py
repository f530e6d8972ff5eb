"""Whether a cut can take along what an optimizer remembers; asked before anything is cut.

A cut finds an optimizer's memory in `opt.state[parameter]`: tensors of the parameter's shape (or of size 1 along what they
are a mean over), and numbers. Everything else would keep the old shapes and fail, or go wrong, in the next step: lists and
dictionaries of tensors, preconditioners and other matrices, objects, tensors in the optimizer's groups or attributes, and a
second optimizer inside with a state of its own.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Refusal, warn

_WHOLE: dict[type, str] = {
    torch.optim.LBFGS: "remembers all parameters as one flat vector",
    torch.optim.SparseAdam: "works on sparse gradients",
}
_DEPTH = 6  # how deep attributes are looked into
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type)


def check_optimizer(opt: torch.optim.Optimizer) -> None:
    """Refuse optimizers that never go along with a cut, whatever they remember so far.

    Raises:
        TypeError: LBFGS and SparseAdam.
    """
    for kind, reason in _WHOLE.items():
        if isinstance(opt, kind):
            raise TypeError(_refusal(opt, reason))


def check_memory(opt: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Refuse optimizers whose memory of these parameters cannot be cut.

    Args:
        opt: after a step, so that it has a memory.
        parameters: of the network.

    Raises:
        TypeError: names what it keeps, and where.
    """
    check_optimizer(opt)
    reason = _in_state(opt, list(parameters)) or _elsewhere(opt, opt)
    if reason:
        raise TypeError(_refusal(opt, reason))


def forget(opt: torch.optim.Optimizer) -> None:
    """Clear what an optimizer remembers, and say what it keeps outside of its state, which goes on from the old weights."""
    reason = _elsewhere(opt, opt)
    opt.state.clear()
    if reason:
        warn(
            f"{type(opt).__name__} {reason}, which is not forgotten where training begins anew: make the optimizer anew there, or "
            "use another one"
        )


def follows(value: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has a parameter's shape, or size 1 where it holds a mean over a dimension."""
    return value.dim() == len(shape) and all(n in (m, 1) for n, m in zip(value.shape, shape, strict=True))


def is_number(value: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor beside a parameter of this shape is a single number, such as a count of steps."""
    return value.dim() == 0 or (value.numel() == 1 and value.dim() != len(shape))


def _refusal(opt: torch.optim.Optimizer, reason: Refusal | str) -> str:
    return (
        f"{type(opt).__name__} {reason}, so the network cannot shrink while it trains. Use another optimizer, or leave Shrink "
        "out and let finish() remove everything at the end"
    )


def _in_state(opt: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Refusal | None:
    """What in the state of these parameters cannot be cut; None when all can."""
    state: Any = opt.state
    proven: set[object] = set()
    doubtful: dict[object, torch.Size] = {}
    for parameter in parameters:
        own = state.get(parameter, {})
        shape = parameter.shape
        if not isinstance(own, Mapping):
            return Refusal(f"keeps a {type(own).__name__} for a parameter of shape {tuple(shape)}")
        for key, value in own.items():
            if value is None or isinstance(value, bool | int | float | complex | str):
                continue
            what = f"keeps {key!r}"
            if not isinstance(value, Tensor):
                return Refusal(f"{what}, a {type(value).__name__}, for a parameter of shape {tuple(shape)}")
            if is_number(value, shape):
                continue
            if not follows(value, shape):
                return Refusal(f"{what} of shape {tuple(value.shape)} for a parameter of shape {tuple(shape)}")
            if len(shape) == 2 and shape[0] == shape[1] > 1:
                doubtful.setdefault(key, shape)
            elif len(shape) > 1:
                proven.add(key)
    unclear = [key for key in doubtful if key not in proven]
    if unclear and not type(opt).__module__.startswith("torch.optim"):
        n = doubtful[unclear[0]][0]
        return Refusal(
            f"keeps {unclear[0]!r} of shape ({n}, {n}) for parameters of shape ({n}, {n}) and for no other matrix, so it is not "
            "clear whether that is cut like the parameter or belongs to its rows (a preconditioner)"
        )
    return None


def _elsewhere(opt: torch.optim.Optimizer, part: torch.optim.Optimizer) -> Refusal | None:
    """What an optimizer keeps outside of `opt.state` that has sizes; None when there is nothing.

    Args:
        opt: whose state and groups go along with a cut.
        part: itself, or an optimizer inside with the same state.
    """
    own = {id(p) for group in opt.param_groups for p in group["params"]}
    places: list[tuple[str, object]] = [
        (f"{key!r} in its parameter groups", value) for group in part.param_groups for key, value in group.items()
    ]
    state: Any = part.state
    places += [("state of something that is no parameter", v) for k, v in state.items() if not isinstance(k, Tensor)]
    places += [(f"its attribute {k!r}", v) for k, v in vars(part).items() if v is not state and k != "param_groups"]
    for where, value in places:
        for found in _sized(value, {id(part), id(state), *own}, _DEPTH):
            if isinstance(found, Tensor):
                return Refusal(f"keeps a tensor of shape {tuple(found.shape)} outside of its state ({where})")
            if found.state is not state:
                return Refusal(
                    f"has another optimizer inside, a {type(found).__name__} with a state of its own ({where})"
                )
            if reason := _elsewhere(opt, found):
                return reason
    return None


def _sized(value: object, seen: set[int], depth: int) -> Iterator[Any]:
    """Tensors of more than one number, and optimizers, that can be reached from a value."""
    if id(value) in seen or depth == 0 or isinstance(value, (*_CODE, nn.Module, str, bytes, int, float, complex)):
        return
    seen.add(id(value))
    if isinstance(value, torch.optim.Optimizer) or (isinstance(value, Tensor) and value.numel() > 1):
        yield value
    elif isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            yield from _sized(part, seen, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _sized(part, seen, depth - 1)
    elif hasattr(value, "__dict__"):
        yield from _sized(vars(value), seen, depth)
