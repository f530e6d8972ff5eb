"""What `Run.load_state_dict` was given, looked at before anything is changed."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.analysis.capture import untouched_random
from paring.core import Inputs, Method, attached, concise
from paring.core.printable import printable
from paring.run.rewind_point import own_state
from paring.run.surgery.carry import cut_network
from paring.run.surgery.live_cut import KEPT, READS, SIZE, recall

_FIELDS = ("step", "round", "method", "shrinks", "point", "state", "said")
_WRONG = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, KeyError)


def checked(state: Any, net: nn.Module, method: Method, example: Inputs) -> nn.Module:
    """The network as this state would leave it: itself, or a smaller copy where the state's network had shrunk.

    Raises:
        ValueError: the state is none of this method and network; the message names the field.
    """
    check_fields(state, _FIELDS, "a run's state")
    for name, least, most in (("step", 0, 1 << 48), ("round", 0, method.rounds)):
        if type(state[name]) is not int or not least <= state[name] < most:
            raise ValueError(f"'{name}' is {_told(state[name])}; it must be a whole number, from {least} to {most - 1}")
    if state["method"] not in (concise(method), repr(method)):
        raise ValueError(f"this state was saved with {printable(state['method'], 500)}, but {method!r} is attached")
    if not isinstance(state["shrinks"], list) or not all(isinstance(record, dict) for record in state["shrinks"]):
        raise ValueError(f"'shrinks' is {_told(state['shrinks'])}; it must be a list of records")
    if not isinstance(state["said"], list) or not all(isinstance(line, str) for line in state["said"]):
        raise ValueError(f"'said' is {_told(state['said'])}; it must be a list of lines")
    twin = after_cuts(state["state"], net, example)
    if state["point"] is not None:
        check_tensors(state["point"], own_state(twin), "the rewind point")
    return twin


def check_fields(state: Any, fields: tuple[str, ...], what: str) -> None:
    """Raise ValueError unless `state` is a dict of exactly these fields."""
    if not isinstance(state, dict):
        raise ValueError(f"{what} is a {type(state).__name__}; it must be a dict of {', '.join(fields)}")
    if missing := [name for name in fields if name not in state]:
        raise ValueError(f"'{missing[0]}' is missing in {what}; it has {', '.join(fields)}")
    if odd := [name for name in state if name not in fields]:
        raise ValueError(f"{_told(odd[0])} is no field of {what}; it has {', '.join(fields)}")


def check_tensors(found: Any, wanted: Mapping[str, Any], what: str) -> None:
    """Raise ValueError unless `found` has tensors of the names, shapes and types of `wanted`, and no others."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} is a {type(found).__name__}; it must be a dict of tensors")
    for name, value in wanted.items():
        if name not in found:
            raise ValueError(f"'{name}' is missing in {what}")
        mine = found[name]
        if not isinstance(value, Tensor):
            continue
        if not isinstance(mine, Tensor):
            raise ValueError(f"'{name}' in {what} is {_told(mine)}; it must be a tensor")
        if mine.shape != value.shape or mine.dtype != value.dtype:
            raise ValueError(
                f"'{name}' in {what} is of shape {tuple(mine.shape)} and {mine.dtype}; here it has {tuple(value.shape)} and "
                f"{value.dtype}"
            )
    if odd := [name for name in found if name not in wanted]:
        raise ValueError(f"{_told(odd[0])} in {what} is nothing that this network has")


def after_cuts(memory: Any, net: nn.Module, example: Inputs) -> nn.Module:
    """The network once it is cut as an attachment remembers it: itself when nothing was cut, else a smaller copy.

    Raises:
        ValueError: what is remembered does not fit this network, or belongs to one larger than it now is.
    """
    if not isinstance(memory, dict):
        raise ValueError(f"the method's state is a {type(memory).__name__}; it must be a dict of tensors")
    stored, tensors = (
        attached(net).state,
        {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())},
    )
    for name, value in memory.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{_told(name)} in the method's state is {_told(value)}; it must be a tensor")
        if problem := _problem(name, value, stored, tensors, net):
            raise ValueError(f"{_told(name)} in the method's state {problem}")
    cuts = recall(stored, memory)
    if not cuts:
        return net
    try:
        twin = copy.deepcopy(net)
        cut_network(twin, cuts)
        with torch.no_grad(), untouched_random():
            example.call(copy.deepcopy(twin).eval())
    except _WRONG as error:
        raise ValueError(f"what was cut according to the method's state does not fit this network: {error}") from error
    return twin


def _problem(
    name: str, value: Tensor, stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor], net: nn.Module
) -> str:
    """What is wrong with a tensor that an attachment remembers; empty when nothing is."""
    if name.startswith(KEPT):
        dim, _, of = name.removeprefix(KEPT).partition("/")
        if of not in tensors or dim not in map(str, range(tensors[of].dim())):
            return "is of a tensor that this network does not have"
        most = None if name in stored else tensors[of].shape[int(dim)]
        return "" if _indices(value, most) else "is no sorted list of indices of that tensor"
    if name.startswith(READS):
        linear = any(isinstance(m, nn.Linear) for path, m in net.named_modules() if path == name.removeprefix(READS))
        return "" if linear and _indices(value, None) else "is no sorted list of columns of a linear layer"
    if name.startswith(SIZE):
        norm = dict(net.named_modules()).get(name.removeprefix(SIZE))
        right = hasattr(norm, "num_features") and value.dim() == 0 and value.dtype == torch.int64 and int(value) > 0
        return "" if right else "is no size of a norm"
    if name in stored and (value.shape != stored[name].shape or value.dtype != stored[name].dtype):
        return f"is of shape {tuple(value.shape)} and {value.dtype}; here it has {tuple(stored[name].shape)}"
    return "" if bool(value.isfinite().all()) else "is not finite"


def _indices(value: Tensor, most: int | None) -> bool:
    """Whether these are indices in increasing order, at least one, below `most`."""
    if value.dim() != 1 or value.dtype != torch.int64 or not len(value):
        return False
    ordered = bool((value[1:] > value[:-1]).all()) and int(value[0]) >= 0
    return ordered and (most is None or int(value[-1]) < most)


def _told(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
