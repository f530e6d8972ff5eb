"""Multiply gates that no longer move into the weights, in the network and in all that has its weights.

A held gate is a constant z, so θ' = z θ behind a gate of one is the same function, without the multiplication. With
∂loss/∂θ' = (∂loss/∂θ) / z, whatever an optimizer remembers of degree k in the gradient is divided by z^k, and averages of
weights are multiplied by z. From there on training takes another path: a step in θ' is a step in z θ, not in θ.

A gate that is closed somewhere goes on multiplying, with zeros and ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn

from paring.core import Gate, Inputs, factors, gated_layers, gates, unwrapped
from paring.core.shared_gate import SharedGate
from paring.gates import StochasticGate
from paring.run.surgery.carry import Carried
from paring.run.surgery.folded import Judged, same_or_raise
from paring.run.surgery.live_cut import check_copy

_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_DEGREES: dict[str, dict[str, int]] = {
    "SGD": {"momentum_buffer": 1},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "Adamax": {"exp_avg": 1, "exp_inf": 1},
    "Adagrad": {"sum": 2},
    "Adadelta": {"square_avg": 2, "acc_delta": 0},
    "RMSprop": {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    "Rprop": {"prev": 1, "step_size": 0},
    "ASGD": {"ax": -1},
    "Muon": {"momentum_buffer": 1},
}


def fold_gates(net: nn.Module, example: Inputs, companions: Iterable[object]) -> bool:
    """Multiply all held gates of `net` into its weights; False when there was none left.

    Gates next to a gate at "weights" that does more than multiply stay as they are.

    Args:
        net: a gated network.
        example: example arguments; outputs before and after are compared on a copy first.
        companions: optimizers, copies of the network (which take over its gates), averages.

    Raises:
        RuntimeError: the network would not compute the same, because its forward uses weights of a gated layer without
            calling it. Nothing was changed then.
        TypeError: an optimizer keeps state of which nobody knows how it follows the gradient. Nothing was changed then.
        ValueError: a copy has other shapes than the network. Nothing was changed then.
    """
    ready = _ready(net)
    if not ready:
        return False
    _check(net, example)
    companions = list(companions)
    copies = [unwrapped(other) for other in companions if isinstance(other, nn.Module)]
    for copy_ in copies:
        check_copy(net, copy_)
    scales = _scales(net, ready)
    states = [part for o in companions if isinstance(o, torch.optim.Optimizer) for part in _states(o, scales)]
    names = {name: scales[p] for name, p in net.named_parameters() if p in scales}
    with torch.no_grad():
        for value, scale, degree in states:
            value.div_(scale**degree)
        for copy_ in copies:
            _scale(dict(copy_.named_parameters()), names)
        _scale(dict(net.named_parameters()), names)
    for gate in ready:
        gate.note_folded()
    for copy_ in copies:
        for (_, _, mine), (_, _, theirs) in zip(gates(net), gates(copy_), strict=True):
            theirs.load_state_dict(mine.state_dict())
    for carried in companions:
        if isinstance(carried, Carried):
            carried.shrink(lambda name, value: (value * names[name]).to(value.dtype) if name in names else value)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    return True


def check_foldable(opt: torch.optim.Optimizer) -> None:
    """Refuse optimizers whose memory cannot follow.

    Raises:
        TypeError: nobody knows how its state follows the gradient.
    """
    _degrees(opt)


def _degrees(opt: torch.optim.Optimizer) -> dict[str, int]:
    for kind in type(opt).__mro__:
        if kind.__module__.startswith("torch.optim") and kind.__name__ in _DEGREES:
            return _DEGREES[kind.__name__]
    raise TypeError(
        f"it is not known how the state of {type(opt).__name__} follows the gradient, so gates cannot be multiplied into "
        "the weights while training. Use another optimizer, or Shrink(fold=False)"
    )


def _states(opt: torch.optim.Optimizer, scales: dict[nn.Parameter, Tensor]) -> list[tuple[Tensor, Tensor, int]]:
    """(state, factor of its parameter, degree in the gradient) for all state that has to follow."""
    degrees, found = _degrees(opt), []
    for parameter, scale in scales.items():
        for key, value in opt.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if key not in degrees:
                raise TypeError(
                    f"{type(opt).__name__} keeps '{key}', and it is not known how that follows the gradient, so gates "
                    "cannot be multiplied into the weights while training. Use Shrink(fold=False)"
                )
            found.append((value, scale, degrees[key]))
    return [part for part in found if part[2] != 0]


def _ready(net: nn.Module) -> list[StochasticGate]:
    """Gates that are frozen and not folded yet, and may be multiplied into the weights wherever they act."""
    bound: set[int] = set()
    for _, layer in gated_layers(net):
        if any(type(gate).see is not Gate.see for gate in layer.at_weights().values()):
            others = [gate for kind, gate in layer.gates().items() if kind != "weights"]
            bound |= {
                id(part) for gate in others for part in (gate.gates() if isinstance(gate, SharedGate) else (gate,))
            }
    return [
        gate
        for _, _, gate in gates(net)
        if isinstance(gate, StochasticGate) and gate.frozen and not gate.folded and id(gate) not in bound
    ]


def _scales(net: nn.Module, ready: list[StochasticGate]) -> dict[nn.Parameter, Tensor]:
    """What each parameter is multiplied by, where that is not one."""
    chosen = {id(gate) for gate in ready}

    def constant(gate: Gate) -> Tensor:
        return gate.constant() if id(gate) in chosen else torch.ones_like(gate.value())

    found: dict[nn.Parameter, Tensor] = {}
    for _, layer in gated_layers(net):
        for kind, leaf, gate in layer.held():
            value = (gate.gather(constant) if isinstance(gate, SharedGate) else constant(gate)).detach()
            if bool((value == 1).all()):
                continue
            for name, factor in factors(layer, kind, value, leaf).items():
                parameter = cast(nn.Parameter, attrgetter(name)(layer))
                found[parameter] = found[parameter] * factor if parameter in found else factor
    return found


def _scale(parameters: dict[str, nn.Parameter], names: dict[str, Tensor]) -> None:
    for name, scale in names.items():
        parameters[name].mul_(scale)
        gradient = parameters[name].grad
        if gradient is not None:
            gradient.div_(scale)


def _check(net: nn.Module, example: Inputs) -> None:
    judged = Judged.of(net, example)
    before = judged.outputs()
    ready = _ready(judged.net)
    by_parameter = _scales(judged.net, ready)
    with torch.no_grad():
        for parameter, scale in by_parameter.items():
            parameter.mul_(scale)
    for gate in ready:
        gate.note_folded()
    same_or_raise(before, judged.outputs(), judged, net)
