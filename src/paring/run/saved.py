"""What `Run.load_state_dict` was given, looked at before anything is changed."""

from __future__ import annotations

import copy
import io
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.analysis.capture import untouched_random
from paring.core import STATE_FIELDS, STATE_KEY, Inputs, Method, TrainingState, attached, short_repr
from paring.core.fresh import let_go
from paring.core.norm_statistics import misfit
from paring.core.printable import printable
from paring.core.state_file import CheckpointError, read_from, write
from paring.run.rewind_point import own_state
from paring.run.surgery.carry import cut_network
from paring.run.surgery.live_cut import recall

_FIELDS = ("step", "round", "method", "shrinks", "point", "state", "said")
CUT_FIELDS = ("kept", "reads", "sizes")
_WHAT = "the method's state"
_WRONG = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, KeyError)


def packed(state: dict[str, Any]) -> Tensor:
    """A run's state as bytes (n,), which any state dict holds."""
    file = io.BytesIO()
    write(file, state)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def unpacked(value: Any) -> dict[str, Any]:
    """The same back again.

    Raises:
        ValueError: it is something else, or was changed.
    """
    alone = f"To load the tensors alone, take {STATE_KEY!r} out of the state dict"
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.dim() != 1:
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(
            f"what paring keeps in this state dict is {what} and not bytes any more: averaging or converting a state dict has to "
            f"leave whole numbers as they are. {alone}"
        )
    data = value.detach().cpu().numpy().tobytes()
    try:
        return read_from(io.BytesIO(data), len(data))
    except CheckpointError as error:
        raise ValueError(f"what paring keeps in this state dict cannot be read: {error}. {alone}") from error


def checked(state: Any, net: nn.Module, method: Method, example: Inputs) -> nn.Module:
    """The network as this state would leave it: itself, or a smaller copy where the state's network had shrunk.

    Raises:
        ValueError: the state is none of this method and network; the message names the field.
    """
    check_fields(state, _FIELDS, "a run's state")
    for name, least, most in (("step", 0, 1 << 48), ("round", 0, method.rounds)):
        if type(state[name]) is not int or not least <= state[name] < most:
            raise ValueError(f"'{name}' is {_told(state[name])}; it must be a whole number, from {least} to {most - 1}")
    if state["method"] not in (short_repr(method), repr(method)):
        raise ValueError(f"this state was saved with {printable(state['method'], 500)}, but {method!r} is attached")
    if not isinstance(state["shrinks"], list) or not all(isinstance(record, dict) for record in state["shrinks"]):
        raise ValueError(f"'shrinks' is {_told(state['shrinks'])}; it must be a list of records")
    if not isinstance(state["said"], list) or not all(isinstance(line, str) for line in state["said"]):
        raise ValueError(f"'said' is {_told(state['said'])}; it must be a list of lines")
    copy_ = after_cuts(state["state"], net, example)
    if state["point"] is not None:
        check_tensors(state["point"], own_state(copy_), "the rewind point")
    return copy_


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
    """The network once it is cut as an attachment remembers it: itself when nothing was cut, else a smaller copy, in eval mode.

    Raises:
        ValueError: what is remembered does not fit this network, or belongs to one larger than it now is.
    """
    stored = attached(net).state
    then = _read(memory, net, stored)
    cuts = recall(stored, then)
    if not cuts:
        return net
    try:
        copy_ = copy.deepcopy(let_go(net))
        cut_network(copy_, cuts)
        with torch.no_grad(), untouched_random():
            example.call(copy_.eval())
    except _WRONG as error:
        raise ValueError(f"what was cut according to the method's state does not fit this network: {error}") from error
    return copy_


def _read(memory: Any, net: nn.Module, stored: TrainingState) -> TrainingState:
    """What an attachment remembers, looked at entry by entry; `stored` is what this network's does.

    Raises:
        ValueError: it does not fit this network.
    """
    check_fields(memory, STATE_FIELDS, _WHAT)
    if odd := [name for name in STATE_FIELDS if not isinstance(memory[name], dict)]:
        raise ValueError(f"'{odd[0]}' in {_WHAT} is {_told(memory[odd[0]])}; it must be a dict")
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    for name, dims in memory["kept"].items():
        _must(name in tensors, "kept", name, "is of a tensor that this network does not have")
        _must(isinstance(dims, dict) and len(dims) > 0, "kept", name, "is no dict of dimensions")
        for dim, index in dims.items():
            _must(type(dim) is int and 0 <= dim < tensors[name].dim(), "kept", name, f"has no dimension {_told(dim)}")
            most = None if dim in stored.kept.get(name, {}) else tensors[name].shape[dim]
            _must(_indices(index, most), "kept", name, "is no sorted list of indices of that tensor")
    modules = dict(net.named_modules(remove_duplicate=False))
    for name, index in memory["reads"].items():
        linear = isinstance(name, str) and isinstance(modules.get(name), nn.Linear)
        _must(linear and _indices(index, None), "reads", name, "is no sorted list of columns of a linear layer")
    for name, size in memory["sizes"].items():
        norm = isinstance(name, str) and hasattr(modules.get(name), "num_features")
        _must(norm and type(size) is int and size > 0, "sizes", name, "is no size of a norm")
    for name, costs in memory["multipliers"].items():
        _must(
            isinstance(name, str) and isinstance(costs, dict) and len(costs) > 0,
            "multipliers",
            name,
            "is no dict of costs",
        )
        for cost, number in costs.items():
            right = isinstance(cost, str) and isinstance(number, Tensor) and number.dim() == 0
            right = right and number.is_floating_point() and bool(number.isfinite()) and bool(number >= 0)
            _must(right, "multipliers", name, f"has no number for {_told(cost)}")
    for name, value in memory["tensors"].items():
        _must(isinstance(name, str) and isinstance(value, Tensor), "tensors", name, f"is {_told(value)}, and no tensor")
        if name in stored.tensors:
            mine = stored.tensors[name]
            same = value.shape == mine.shape and value.dtype == mine.dtype
            _must(
                same, "tensors", name, f"is of shape {tuple(value.shape)} and {value.dtype}; here {tuple(mine.shape)}"
            )
        _must(bool(value.isfinite().all()), "tensors", name, "is not finite")
    if wrong := misfit(net, memory["tensors"]):
        _must(False, "tensors", wrong, "is no momentum of a norm with statistics")
    return TrainingState(**memory)


def _must(right: bool, field: str, name: Any, problem: str) -> None:
    if not right:
        raise ValueError(f"{_told(name)} in '{field}' of {_WHAT} {problem}")


def _indices(value: Any, most: int | None) -> bool:
    """Whether these are indices in increasing order, at least one, below `most`."""
    if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.int64 or not len(value):
        return False
    ordered = bool((value[1:] > value[:-1]).all()) and int(value[0]) >= 0
    return ordered and (most is None or int(value[-1]) < most)


def _told(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
