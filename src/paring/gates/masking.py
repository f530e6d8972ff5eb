"""Masks on weights, for the methods that prune them: put them in, set them, keep what they close at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paring.core import At, Method, Probe, attached, gated_layers, kind_of, packed_name
from paring.gates.left_out import say_left_out
from paring.gates.mask_gate import MaskGate
from paring.gates.openness import gate_of
from paring.gates.place import Site, put_gate, sites
from paring.select import NM, Structure, Weights

_SINGLE = Weights()


def weight_sites(net: nn.Module, probe: Probe, places: At) -> tuple[Site, ...]:
    """The sites that these places mean, which are "weights" or selections of them, in the order of the network.

    Layers that hold weights and take no mask are named (`say_left_out`).

    Raises:
        ValueError: a place selects nothing.
    """
    found = sites(net, probe.wiring, places)
    say_left_out(net, probe, places, found)
    order = {layer.name: number for number, layer in enumerate(probe.wiring.layers)}
    packed = {
        name: min((order[part.layer] for part in one.parts), default=len(order))
        for name, one in probe.wiring.packed.items()
    }
    return tuple(sorted(found, key=lambda site: {**order, **packed}[site.layer]))


def sites_of(net: nn.Module, method: Method) -> tuple[Site, ...]:
    """The sites that `method` noted when it was attached to this network."""
    found: tuple[Site, ...] = attached(net).notes[method]
    return found


def put_masks(
    net: nn.Module, probe: Probe, places: At, structure: Structure = _SINGLE, factor: float = 1.0
) -> tuple[Site, ...]:
    """Put a `MaskGate`, all open, at each of these places, which are "weights" or selections of them.

    structure: in which the method closes weights; of N:M layers removal keeps the groups. factor: of `MaskGate`.

    Raises:
        ValueError: a place selects nothing.
    """
    found, modules = weight_sites(net, probe, places), dict(net.named_modules())
    for site in found:
        group, device = structure.m if isinstance(structure, NM) else 1, weight_of(net, site).device
        put_gate(modules, site, MaskGate(site.shape, factor=factor, input_group=group, device=device))
    return found


def input_groups(net: nn.Module) -> dict[str, int]:
    """Size of the groups of inputs of layers whose masks are N:M, by layer; an embedding has no inputs to lose."""
    return {
        packed_name(name, leaf): gate.input_group
        for name, layer in gated_layers(net)
        for leaf, gate in layer.at_weights().items()
        if isinstance(gate, MaskGate)
        and gate.input_group > 1
        and (kind := kind_of(layer)) is not None
        and (kind.column_dim is not None or kind.packed(layer))
    }


def mask_of(net: nn.Module, site: Site) -> MaskGate:
    """The mask at `site` in this network."""
    gate = gate_of(net, site)
    assert isinstance(gate, MaskGate)
    return gate


def weight_of(net: nn.Module, site: Site) -> nn.Parameter:
    """The weight on which the gate at `site` sits; a plain tensor while a sharded network is whole."""
    path, _, leaf = site.parameter.rpartition(".")
    weight: nn.Parameter = getattr(net.get_submodule(path), leaf)
    return weight


def weights_of(net: nn.Module, found: Sequence[Site]) -> dict[str, nn.Parameter]:
    """Weights by layer name, in the order of the network."""
    return {site.layer: weight_of(net, site) for site in found}


def latent_of(net: nn.Module, found: Sequence[Site]) -> dict[str, Tensor]:
    """Weights by layer name, with the values put aside where they are closed."""
    return {site.layer: mask_of(net, site).latent(weight_of(net, site).detach()) for site in found}


def masks_of(net: nn.Module, found: Sequence[Site]) -> dict[str, Tensor]:
    """Masks by layer name, in the order of the network."""
    return {site.layer: mask_of(net, site).mask for site in found}


def set_masks(net: nn.Module, found: Sequence[Site], masks: Mapping[str, Tensor]) -> None:
    """Give every gate its mask (bool or zeros and ones)."""
    for site in found:
        mask_of(net, site).choose(masks[site.layer])


def put_aside(net: nn.Module, found: Sequence[Site], masks: Mapping[str, Tensor]) -> None:
    """Give every gate its mask; what closes keeps its value aside, and what opens gets it back."""
    for site in found:
        mask_of(net, site).set_aside(weight_of(net, site), masks[site.layer])


def freeze_masks(net: nn.Module, found: Sequence[Site], fixed: bool = True) -> None:
    """From now on what is closed is closed for good; False takes that back."""
    for site in found:
        mask_of(net, site).freeze(fixed)


@torch.no_grad()
def clear_closed(net: nn.Module, found: Sequence[Site]) -> None:
    """Set closed weights to zero, whatever momentum and weight decay did to them."""
    for site in found:
        weight_of(net, site).mul_(mask_of(net, site).mask)


@torch.no_grad()
def forget(opt: torch.optim.Optimizer, weight: nn.Parameter, where: Tensor) -> None:
    """Set the optimizer's state of these entries of a weight to zero (momentum, second moments, maxima)."""
    for value in opt.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.masked_fill_(where, 0.0)
