"""Optimizer groups of a gated network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paring.core import Gate, attached, gates

_OWN = "gates"  # how groups are called whose rate is that of the gates already
_MEMORY = "paring_gates"  # in a group: what the optimizer's steps wrote into the groups of its gates
_ASIDE = ("params", "param_names", _MEMORY)


def optimizer_groups(net: nn.Module, lr: float, weight_decay: float, gate_lr: float | None) -> list[dict[str, Any]]:
    """The weights, and the gates by learning rate and weight decay; see `Run.parameter_groups`."""
    groups: list[dict[str, Any]] = []
    gate_groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for _, _, gate in gates(net):
        key = (lr * gate.lr_scale if gate_lr is None else gate_lr, weight_decay if gate.decay else 0.0)
        for parameter in gate.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                gate_groups.setdefault(key, []).append(parameter)
    weights = [p for p in net.parameters() if id(p) not in seen]
    if weights:
        groups.append({"params": weights, "lr": lr, "weight_decay": weight_decay, "name": "weights"})
    for number, ((rate, decay), parameters) in enumerate(gate_groups.items()):
        groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": f"{_OWN}{number or ''}"})
    return groups


def check_groups(net: nn.Module, opt: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that would never move some gate.

    Raises:
        ValueError: it lacks the gates' parameters.
    """
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    lacking = [f"{name}.{kind}" for name, kind, gate in gates(net) if any(id(p) not in held for p in gate.parameters())]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(
            f"the optimizer does not hold the parameters of {len(lacking)} gates ({shown}), so they would never move; "
            f"build it after attach (and after fully_shard, which replaces parameters), with {type(opt).__name__}(run.parameter_groups(lr=...)), "
            "or hand it to run.follow(optimizer)"
        )


def add_parameters(net: nn.Module, opt: torch.optim.Optimizer, names: Iterable[str]) -> None:
    """Add parameters that came in after the optimizer was made, each to the group of the weights that it belongs to.

    Args:
        net: the network.
        opt: its optimizer. No group is added, so that schedulers made before stay right.
        names: the parameters; those that the optimizer holds already stay where they are.

    Raises:
        ValueError: the optimizer holds nothing of this network.
    """
    groups = {id(p): group for group in opt.param_groups for p in group["params"]}
    if not any(id(p) in groups for p in net.parameters()):
        raise ValueError(
            f"this {type(opt).__name__} holds no parameter of the {type(net).__name__}: give the optimizer that trains it, such as "
            f"{type(opt).__name__}(net.parameters(), ...)"
        )
    own = dict(net.named_parameters(remove_duplicate=False))
    for name in names:
        parameter = own[name]
        if id(parameter) not in groups:
            group = _group_near(net, name, groups) or opt.param_groups[0]
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(name)
            groups[id(parameter)] = group
            if isinstance(opt, torch.optim.Adagrad):  # makes its state when it is made, and never later
                opt.state.update(type(opt)([{**group, "params": [parameter], "param_names": [name]}]).state)


def _group_near(net: nn.Module, name: str, groups: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """The group of the weights of the nearest module around a parameter that has some."""
    path = name.rpartition(".")[0]
    while path:
        path = path.rpartition(".")[0]
        for parameter in net.get_submodule(path).parameters(recurse=False):
            if id(parameter) in groups:
                return groups[id(parameter)]
    return None


@dataclass
class _Apart:
    """A group whose gates have groups of their own right now.

    Attributes:
        group: the group.
        params, names: what it holds otherwise; `names` only where the optimizer was given some.
        parts: the gates' groups, by what sets them apart.
        before: the same as they were made.
    """

    group: dict[str, Any]
    params: list[nn.Parameter]
    names: list[str]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)


class GateGroups:
    """Groups of their own for the gates while an optimizer steps, and only then.

    In between gates lie in the groups of the weights that they multiply. So schedulers, made before or after, see the groups
    that they know, and a gate's learning rate is at each step its multiple of the one that its weights have then.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._gates: dict[nn.Parameter, Gate] = {p: gate for _, _, gate in gates(net) for p in gate.parameters()}
        self._apart: list[_Apart] = []

    def split(self, opt: torch.optim.Optimizer) -> None:
        """Take the gates out of their groups, into groups with their own learning rate and weight decay."""
        for group in list(opt.param_groups):
            if str(group.get("name", "")).startswith(_OWN):
                continue
            places: dict[tuple[float, bool], list[int]] = {}
            for place, parameter in enumerate(group["params"]):
                gate = self._gates.get(parameter)
                if gate is not None and (gate.lr_scale, gate.decay) != (1.0, True):
                    places.setdefault((gate.lr_scale, gate.decay), []).append(place)
            if places:
                self._split(opt, group, places)

    def _split(
        self, opt: torch.optim.Optimizer, group: dict[str, Any], places: dict[tuple[float, bool], list[int]]
    ) -> None:
        apart = _Apart(group, list(group["params"]), list(group.get("param_names", ())))
        for (scale, decay), chosen in places.items():
            key = f"{scale:g}{' with decay' if decay else ''}"
            part = {name: value for name, value in group.items() if name not in _ASIDE}
            part |= group.get(_MEMORY, {}).get(key, {})
            part["params"] = [apart.params[place] for place in chosen]
            if apart.names:
                part["param_names"] = [apart.names[place] for place in chosen]
            if scale != 1.0:
                part["lr"] = self._scaled(opt, part.get("lr"), scale)
            if not decay and "weight_decay" in part:
                part["weight_decay"] = 0.0
            apart.parts[key], apart.before[key] = part, dict(part)
        taken = {place for chosen in places.values() for place in chosen}
        group["params"][:] = [p for place, p in enumerate(apart.params) if place not in taken]
        if apart.names:
            group["param_names"][:] = [name for place, name in enumerate(apart.names) if place not in taken]
        opt.param_groups.extend(apart.parts.values())
        self._apart.append(apart)

    def _scaled(self, opt: torch.optim.Optimizer, lr: Any, scale: float) -> Any:
        if lr is not None:
            return lr * scale
        attached(self._net).say(
            f"{type(opt).__name__} has no learning rate of its own, so the gates do not get {scale:g} times that of the weights: they "
            "learn as fast as the weights. Give it a learning rate, or use another optimizer"
        )
        return None

    def merge(self, opt: torch.optim.Optimizer) -> None:
        """Put the gates back; what the step wrote into their groups (a count, say) is kept for the next one."""
        for apart in self._apart:
            apart.group["params"][:] = apart.params
            if apart.names:
                apart.group["param_names"][:] = apart.names
            wrote = {key: _written(part, apart.before[key]) for key, part in apart.parts.items()}
            if any(wrote.values()):
                memory = apart.group.setdefault(_MEMORY, {})
                for key, values in wrote.items():
                    memory[key] = memory.get(key, {}) | values
            gone = {id(part) for part in apart.parts.values()}
            opt.param_groups[:] = [other for other in opt.param_groups if id(other) not in gone]
        self._apart.clear()


def _written(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a group that are other ones now."""
    return {
        name: value
        for name, value in after.items()
        if name not in _ASIDE and isinstance(value, bool | int | float) and value != before.get(name)
    }
