"""A checkpoint's fields, compared with the training that wants to go on from it before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.plain_json import is_count, is_number, shown
from paring.run.saved import check_fields, check_tensors
from paring.train.ema import Ema

FIELDS = (
    "epoch", "done", "seconds", "cpu_seconds", "recipe", "start", "net", "opt", "run", "ema", "rng", "rng_device", "rows",
)  # fmt: skip
_OPTIMIZER = ("state", "param_groups")
_MEMORY: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}


def check_numbers(state: Mapping[str, Any], epochs: int) -> None:
    """Raise ValueError unless the plain fields are what they should be. epochs: how many there are to train in all."""
    for name, fits in (
        ("epoch", is_count(state["epoch"], 1) and state["epoch"] <= epochs),
        ("done", isinstance(state["done"], bool)),
        ("seconds", is_number(state["seconds"]) and state["seconds"] >= 0),
        ("cpu_seconds", is_number(state["cpu_seconds"]) and state["cpu_seconds"] >= 0),
        ("rows", isinstance(state["rows"], str)),
    ):
        if not fits:
            raise ValueError(f"'{name}' is {shown(state[name])}")


def check_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Raise ValueError unless the states of the random generators are some."""
    wanted = {"rng": torch.Generator()}
    if device.type == "cuda":
        wanted["rng_device"] = torch.Generator(device)
    elif state["rng_device"] is not None:
        raise ValueError(f"'rng_device' is there, and the training is on {device}")
    for name, generator in wanted.items():
        try:
            generator.set_state(state[name])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"'{name}' is no state of a random generator: {error}") from error


def check_optimizer(found: Any, opt: torch.optim.Optimizer, net: nn.Module, copy_: nn.Module) -> None:
    """Raise ValueError unless this is the state of such an optimizer.

    Args:
        found: the state.
        opt: the optimizer, of the parameters of `net`.
        copy_: the network with the sizes that the state is for.
    """
    check_fields(found, _OPTIMIZER, "the optimizer's state")
    own = opt.state_dict()["param_groups"]
    groups = found["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise ValueError(f"the optimizer's 'param_groups' are not the {len(own)} groups of this training")
    for mine, group in zip(own, groups, strict=True):
        check_fields(group, tuple(mine), "a group of the optimizer")
        for name, value in group.items():
            same = repr(value) == repr(mine[name])  # equal, and of the same type inside too
            right = is_number(value) and value >= 0 if name == "lr" else same
            if not right:
                raise ValueError(f"'{name}' of the optimizer is {shown(value)}; here it is {shown(mine[name])}")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    order = [names[id(parameter)] for group in opt.param_groups for parameter in group["params"]]
    shapes = dict(copy_.named_parameters())
    if not isinstance(found["state"], dict):
        raise ValueError(f"the optimizer's 'state' is {shown(found['state'])}")
    for index, memory in found["state"].items():
        if not is_count(index) or index >= len(order):
            raise ValueError(f"the optimizer's state has {shown(index)}, which is no parameter of it")
        _check_memory(memory, _MEMORY[type(opt)], shapes[order[index]], order[index])


def _check_memory(memory: Any, keys: set[str], parameter: Tensor, name: str) -> None:
    """Raise ValueError unless this is what an optimizer remembers of a parameter."""
    if not isinstance(memory, dict) or memory.keys() != keys:
        raise ValueError(f"the optimizer's state of '{name}' must hold {', '.join(sorted(keys))}, not {shown(memory)}")
    for key, value in memory.items():
        if key == "momentum_buffer" and value is None:
            continue
        shape = torch.Size() if key == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise ValueError(f"the optimizer's '{key}' of '{name}' is no floating-point tensor of shape {tuple(shape)}")
        if key != "step" and value.stride() != torch.empty_like(parameter, device="meta").stride():
            raise ValueError(f"the optimizer's '{key}' of '{name}' has another memory order than the parameter")


def check_average(found: Any, ema: Ema | None, copy_: nn.Module) -> None:
    """Raise ValueError unless this is the state of such an average, of a network with the sizes of `copy_`."""
    if ema is None:
        if found is not None:
            raise ValueError("'ema' is there, and the recipe asks for no average")
        return
    check_fields(found, ("updates", "sums"), "the average's state")
    if not is_count(found["updates"]):
        raise ValueError(f"'updates' of the average is {shown(found['updates'])}")
    check_tensors(found["sums"], dict(Ema.tensors(copy_)), "the average")
