"""Gates into layers and out again.

`put` and `share` swap a layer's class and hang a gate on it, `release` folds all gates into the weights and gives the stock
classes back.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from paring.core.attention import joint_projection
from paring.core.gate import Gate
from paring.core.layers import GATED, STOCK, Gated, Kind
from paring.core.shared_gate import SharedGate


def adopt(kind: type[nn.Module]) -> None:
    """Learn to gate a layer class of another library, if it is one of those known here."""
    if (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D"):
        importlib.import_module("paring.core.conv1d")


def gate_shape(module: nn.Module, kind: Kind) -> tuple[int, ...]:
    """Shape of a gate of this kind on a (stock or gated) layer.

    Raises:
        TypeError: the layer cannot carry a gate of this kind; the message says why.
    """
    name = type(module).__name__
    adopt(type(module))
    if type(module) not in GATED and type(module) not in STOCK:
        allowed = ", ".join(sorted(stock.__name__ for stock in GATED))
        raise TypeError(
            f"{name} cannot carry gates: only the stock layers {allowed} can (a subclass may compute differently)"
        )
    if "forward" in vars(module):
        raise TypeError(
            f"{name} cannot carry gates: its forward was replaced on the instance, which would go past them. Take it off "
            "(del layer.forward), or put the gates in first"
        )
    if name in ("Conv1D", "GatedConv1D"):
        if kind != "units":
            raise TypeError(
                f"{name} cannot carry a gate at '{kind}': its weight is transposed, only units are supported"
            )
        return (cast(int, module.nf),)
    if isinstance(module, nn.MultiheadAttention):
        if kind != "units":
            raise TypeError(f"{name} cannot carry a gate at '{kind}': only its joint projection has unit gates")
        if not joint_projection(module):
            raise TypeError(
                f"{name} with separate projections or bias_k cannot carry gates: only a joint projection can"
            )
        return (3 * module.embed_dim,)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if kind != "units":
            raise TypeError(f"{name} cannot carry a gate at '{kind}': a norm has unit gates only")
        if not module.affine:
            raise TypeError(f"{name}(affine=False) cannot carry unit gates: there is no scale to fold them into")
        return (module.num_features,)
    assert isinstance(module, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd)
    if kind == "weights":
        return tuple(module.weight.shape)
    if isinstance(module, nn.Embedding):
        if kind == "inputs":
            raise TypeError("Embedding cannot carry a gate at 'inputs': an index has no features to gate")
        return (module.embedding_dim,)
    if isinstance(module, nn.Linear):
        return (module.in_features if kind == "inputs" else module.out_features,)
    return (module.in_channels if kind == "inputs" else module.out_channels,)


_MOUNTED: dict[Kind, str] = {"units": "unit_gate", "inputs": "input_gate", "weights": "weight_gate"}


def put(module: nn.Module, kind: Kind, gate: Gate) -> Gated:
    """Hang `gate` on `module` in place, swapping its class to the gated one.

    Raises:
        TypeError: the layer cannot carry this kind of gate.
        ValueError: the gate has the wrong shape, or there is one in this place already.
    """
    shape = gate_shape(module, kind)
    if tuple(gate.shape) != shape:
        raise ValueError(
            f"a gate at '{kind}' of this {type(module).__name__} needs shape {shape}, got {tuple(gate.shape)}"
        )
    if gate.per_example and isinstance(module, nn.MultiheadAttention):
        raise ValueError(f"{type(module).__name__} cannot draw one sample per example: its gates multiply weights")
    gated = _swapped(module)
    if getattr(gated, _MOUNTED[kind]) is not None:
        raise ValueError(f"this {type(module).__name__} already has a gate at '{kind}'")
    setattr(gated, _MOUNTED[kind], gate)
    gate.train(module.training)
    return gated


def share(module: nn.Module, gate: Gate, index: Tensor) -> Gated:
    """Hang a unit gate that other modules hold too on `module`, in place, swapping its class to the gated one.

    Args:
        module: a layer or norm.
        gate: of shape (n,).
        index: (units,), for each unit of the module its entry in the gate, -1 for none.

    Raises:
        TypeError: the layer cannot carry unit gates.
        ValueError: the index has the wrong shape, or a unit has a gate already.
    """
    shape = gate_shape(module, "units")
    if tuple(index.shape) != shape:
        raise ValueError(
            f"the index of a shared gate on this {type(module).__name__} needs shape {shape}, got {tuple(index.shape)}"
        )
    held = getattr(module, _MOUNTED["units"], None)
    if held is None:
        return put(module, "units", SharedGate([gate], index.to(gate.support().device)))
    if not isinstance(held, SharedGate):
        raise ValueError(f"this {type(module).__name__} already has a gate at 'units'")
    held.add(gate, index)
    gate.train(module.training)
    return cast(Gated, module)


def _swapped(module: nn.Module) -> Gated:
    if not isinstance(module, Gated):
        module.__class__ = GATED[type(module)]
        for leaf in _MOUNTED.values():
            module.register_module(leaf, None)
    return cast(Gated, module)


def gated_layers(net: nn.Module) -> Iterator[tuple[str, Gated]]:
    """(name, layer) for every gated layer of `net`."""
    for name, module in net.named_modules():
        if isinstance(module, Gated):
            yield name, module


def gates(net: nn.Module) -> Iterator[tuple[str, Kind, Gate]]:
    """(layer name, place, gate) for every gate of `net`, in module order; a shared gate once, at its first layer."""
    seen: set[int] = set()
    for name, layer in gated_layers(net):
        for kind, gate in layer.gates().items():
            for one in gate.gates() if isinstance(gate, SharedGate) else (gate,):
                if id(one) not in seen:
                    seen.add(id(one))
                    yield name, kind, one


@torch.no_grad()
def release(net: nn.Module) -> None:
    """Multiply every test-time gate into the weights and give every layer its stock class back, in place."""
    for _, layer in list(gated_layers(net)):
        held = layer.gates()
        if "weights" in held:  # first: it may do more than multiply
            weight = cast(Tensor, layer.weight)
            weight.copy_(held.pop("weights").fold(weight))
        for kind, gate in held.items():
            for leaf, factor in factors(layer, kind, gate.value()).items():
                cast(Tensor, getattr(layer, leaf)).mul_(factor)
    strip(net)


def factors(layer: Gated, kind: Kind, value: Tensor) -> dict[str, Tensor]:
    """A multiplier in this place, laid out against the layer's parameters: name -> tensor that broadcasts with it."""
    inner = "in_proj_" if isinstance(layer, nn.MultiheadAttention) else ""
    weight = cast(Tensor, getattr(layer, f"{inner}weight"))
    value = value.to(weight.dtype)
    if kind == "weights":
        return {"weight": value}
    if kind == "inputs":
        return {"weight": _input_columns(layer, value)}
    transposed = isinstance(layer, nn.Embedding) or type(layer).__name__ == "GatedConv1D"  # (.., units)
    found = {f"{inner}weight": value if transposed else value.view(-1, *[1] * (weight.dim() - 1))}
    if getattr(layer, f"{inner}bias", None) is not None:
        found[f"{inner}bias"] = value
    return found


def strip(net: nn.Module) -> None:
    """Take all gates out without folding them, and give every layer its stock class back, in place."""
    for _, layer in list(gated_layers(net)):
        for leaf in _MOUNTED.values():
            delattr(layer, leaf)
        layer.__class__ = STOCK[type(layer)]  # type: ignore[assignment]  # a layer's class is swapped on purpose


def _input_columns(layer: Gated, value: Tensor) -> Tensor:
    """`value` (inputs,) laid out against the layer's weight; grouped convolutions see their own slice."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return value
    ones = [1] * len(layer.kernel_size)
    per_group = value.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, dim=0)
    return per_group.view(layer.out_channels, -1, *ones)
