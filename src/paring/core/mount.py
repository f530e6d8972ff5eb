"""Gates into layers and out again.

`put` and `share` swap a layer's class and hang a gate on it, `release` folds all gates into the weights and gives the stock
classes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn

from paring.core.fused_encoder import fuse_again
from paring.core.gate import Gate
from paring.core.gated_subclass import GatedSubclass, gated_subclass
from paring.core.kinds import derived, gateable, kind_of, kinds, stock_class
from paring.core.layers import Gated, GatedCall, PlaceKind, key_of
from paring.core.packed import packed_name
from paring.core.shared_gate import SharedGate


def gate_shape(module: nn.Module, kind: PlaceKind, leaf: str = "weight") -> tuple[int, ...]:
    """Shape of a gate of this kind on a (stock or gated) layer.

    leaf: at "weights", the one that it changes, of a layer that packs several (`Kind.packed`).

    Raises:
        TypeError: the layer cannot carry a gate of this kind; the message says why.
    """
    name = type(module).__name__
    known = gateable(module)
    if known is None:
        allowed = ", ".join(sorted(one.layer.__name__ for one in kinds() if one.gated is not None))
        raise TypeError(
            f"{name} cannot carry gates: only the layers {allowed} can, and those that derive from them "
            "(paring.core.register makes other classes known)"
        )
    if "forward" in vars(module):
        raise TypeError(
            f"{name} cannot carry gates: its forward was replaced on the instance, which would go past them. Take it off "
            "(del layer.forward), or put the gates in first"
        )
    if derived(module):
        hidden = [
            leaf
            for leaf in known.scaled
            if leaf not in module._parameters or isinstance(_of_class(module, leaf), property)
        ]
        if hidden:
            raise TypeError(f"{name} cannot carry gates: its {' and '.join(hidden)} is no parameter of its own")
    if kind == "weights" and leaf in known.packed(module):
        return tuple(attrgetter(leaf)(module).shape)
    if kind == "blocks" and known.last:
        return (1,)
    if kind not in known.places and not (kind == "blocks" and known.scaled):
        raise TypeError(f"{name} cannot carry a gate at '{kind}': {known.elsewhere}")
    if reason := known.obstacle(module):
        raise TypeError(f"{name} cannot carry gates: {reason}")
    return known.shape(module, kind)


_MOUNTED: dict[PlaceKind, str] = {
    "units": "unit_gate",
    "inputs": "input_gate",
    "weights": "weight_gate",
    "blocks": "block_gate",
}
_PACKED = "weight_gates"


def put(module: nn.Module, kind: PlaceKind, gate: Gate, leaf: str = "weight") -> Gated:
    """Hang `gate` on `module` in place, swapping its class to the gated one.

    leaf: as in `gate_shape`.

    Raises:
        TypeError: the layer cannot carry this kind of gate.
        ValueError: the gate has the wrong shape, or there is one in this place already.
    """
    shape = gate_shape(module, kind, leaf)
    if tuple(gate.shape) != shape:
        raise ValueError(
            f"a gate at '{kind}' of this {type(module).__name__} needs shape {shape}, got {tuple(gate.shape)}"
        )
    known = kind_of(module)
    packs = known is not None and kind == "weights" and leaf in known.packed(module)
    if gate.per_example and known is not None and known.packed(module):
        raise ValueError(f"{type(module).__name__} cannot draw one sample per example: its gates multiply weights")
    if gate.noisy and kind == "weights" and issubclass(_gated_class(module), GatedCall | GatedSubclass):
        raise ValueError(
            f"{type(module).__name__} shows no noise of its weights, and this {type(gate).__name__} draws some"
        )
    gated = _swapped(module)
    if packs:
        if gated.weight_gates is None:
            gated.weight_gates = nn.ModuleDict()
        if key_of(leaf) in gated.weight_gates:
            raise ValueError(f"the {leaf} of this {type(module).__name__} already has a gate at '{kind}'")
        gated.weight_gates[key_of(leaf)] = gate
        gate.train(module.training)
        return gated
    if getattr(gated, _MOUNTED[kind]) is not None:
        raise ValueError(f"this {type(module).__name__} already has a gate at '{kind}'")
    setattr(gated, _MOUNTED[kind], gate)
    gate.train(module.training)
    return gated


def share(module: nn.Module, gate: Gate, index: Tensor, kind: PlaceKind = "units") -> Gated:
    """Hang a gate on units that other modules hold too on `module`, in place, swapping its class to the gated one.

    Args:
        module: a layer or norm.
        gate: of shape (n,).
        index: (units,), for each unit of the module its entry in the gate, -1 for none; or (inputs,) at "inputs".
        kind: "units", or "inputs" where the module reads the units.

    Raises:
        TypeError: the layer cannot carry such gates.
        ValueError: the index has the wrong shape, or a unit has a gate already.
    """
    shape = gate_shape(module, kind)
    if tuple(index.shape) != shape:
        raise ValueError(
            f"the index of a shared gate on this {type(module).__name__} needs shape {shape}, got {tuple(index.shape)}"
        )
    held = getattr(module, _MOUNTED[kind], None)
    if held is None:
        return put(module, kind, SharedGate([gate], index.to(gate.support().device)))
    if not isinstance(held, SharedGate):
        raise ValueError(f"this {type(module).__name__} already has a gate at '{kind}'")
    held.add(gate, index)
    gate.train(module.training)
    return cast(Gated, module)


def _of_class(module: nn.Module, leaf: str) -> object:
    return getattr(type(module), leaf, None)


def _gated_class(module: nn.Module) -> type[Gated]:
    known = gateable(module)
    assert known is not None
    if isinstance(module, Gated):
        return type(module)
    return gated_subclass(type(module)) if derived(module) else cast(type[Gated], known.gated)


def _swapped(module: nn.Module) -> Gated:
    if not isinstance(module, Gated):
        module.__class__ = _gated_class(module)
        for leaf in (*_MOUNTED.values(), _PACKED):
            module.register_module(leaf, None)
    return cast(Gated, module)


def gated_layers(net: nn.Module) -> Iterator[tuple[str, Gated]]:
    """(name, layer) for every gated layer of `net`."""
    for name, module in net.named_modules():
        if isinstance(module, Gated):
            yield name, module


def gates(net: nn.Module) -> Iterator[tuple[str, PlaceKind, Gate]]:
    """(layer name, place, gate) for every gate of `net`, in module order; a shared gate once, at its first layer.

    Packed weights have names of their own (`packed_name`).
    """
    seen: set[int] = set()
    for name, layer in gated_layers(net):
        for kind, leaf, gate in layer.held():
            for one in gate.gates() if isinstance(gate, SharedGate) else (gate,):
                if id(one) not in seen:
                    seen.add(id(one))
                    yield packed_name(name, leaf) if leaf else name, kind, one


@torch.no_grad()
def release(net: nn.Module) -> None:
    """Multiply every test-time gate into the weights and give every layer its stock class back, in place."""
    done: set[tuple[int, tuple[int, ...], torch.Size]] = set()
    for _, layer in list(gated_layers(net)):
        for leaf, gate in layer.at_weights().items():  # first: they may do more than multiply
            weight = cast(Tensor, attrgetter(leaf)(layer))
            weight.copy_(gate.fold(weight))
        for kind, gate in layer.gates().items():
            parts = tuple(id(one) for one in (gate.gates() if isinstance(gate, SharedGate) else (gate,)))
            for leaf, factor in factors(layer, kind, gate.value()).items() if kind != "weights" else ():
                held = cast(Tensor, attrgetter(leaf)(layer))
                if (key := (id(held), parts, factor.shape)) not in done:  # layers with one weight share a gate on it
                    held.mul_(factor)
                    done.add(key)
    strip(net)


def factors(layer: Gated, kind: PlaceKind, value: Tensor, leaf: str = "weight") -> dict[str, Tensor]:
    """A multiplier in this place, laid out against the layer's parameters: name -> tensor that broadcasts with it.

    leaf: the parameter behind a gate at "weights".
    """
    known = kind_of(layer)
    assert known is not None
    if kind == "weights":
        return {leaf: value.to(attrgetter(leaf)(layer).dtype)}
    if kind == "blocks":
        held = (leaf for leaf in known.last or known.scaled if attrgetter(leaf)(layer) is not None)
        return {leaf: value.to(attrgetter(leaf)(layer).dtype) for leaf in held}
    if kind == "units" and known.unit_factors is not None:
        return known.unit_factors(layer, value)
    value = value.to(known.weight_in(layer).dtype)
    if kind == "inputs":
        return {known.scaled[0]: known.along_inputs(layer, value)}
    held = (leaf for leaf in known.scaled if getattr(layer, leaf, None) is not None)
    return {leaf: known.along_units(layer, leaf, value) for leaf in held}


def strip(net: nn.Module) -> None:
    """Take all gates out without folding them, and give every layer its stock class back, in place."""
    for _, layer in list(gated_layers(net)):
        for leaf in (*_MOUNTED.values(), _PACKED):
            delattr(layer, leaf)
        layer.__class__ = stock_class(layer)  # type: ignore[assignment]  # a layer's class is swapped on purpose
    fuse_again(net)
