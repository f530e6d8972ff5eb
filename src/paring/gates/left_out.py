"""Layers that hold weights and take no gate, although the user did not leave them out: they are named, with their share.

A method that is asked for a density closes a share of the weights that it reaches. What it does not reach stays dense, so the
network keeps more than was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from paring.analysis import Wiring
from paring.core import At, Gate, Places, Probe, Refusal, attached, gateable, stock_class
from paring.gates.place import Site, packed_site, single_site
from paring.gates.why_not_gateable import carrier_of

_SHOWN = 5  # layers in the message
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def say_left_out(net: nn.Module, probe: Probe, places: At, found: Sequence[Site]) -> None:
    """Say which selected layers hold weights and take no gate: a warning, and a line of the run's report.

    For places at units these are layers of torch whose units nobody knows (recurrent ones); what the graph knows and the method
    leaves alone by design, like the output layer, is no case.

    Args:
        net: the network, with an attachment.
        probe: of the attaching.
        places: as the user gave them.
        found: the gates that they mean.
    """
    chosen = Places.of(places)
    kinds = [kind for kind in ("weights", "units") if kind in chosen.kinds]
    modules = {name: module for name, module in net.named_modules() if not _in_gate(name, net)}
    wiring: Wiring = probe.wiring
    carriers = {carrier_of(layer.name, modules): layer.name for layer in wiring.layers}
    covered = {id(net.get_parameter(site.parameter)) for site in found if site.kind == "weights"}
    for site in found:
        if site.kind != "weights":
            carried = (modules[carrier_of(layer, modules)] for layer in site.layers)
            covered |= {id(weight) for one in carried for weight in _weights(one)}
    total = sum(
        parameter.numel()
        for module in modules.values()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    told: dict[str, str] = {}
    lost = 0
    for name, module in modules.items():
        packed = [one for one in wiring.packed.values() if one.module == name]
        for place in chosen.places:
            if place.kind not in kinds:
                continue
            held, why = [weight for weight in _weights(module) if id(weight) not in covered], None
            if place.kind == "weights" and packed:
                selected = [one for one in packed if place.selects_group({name: module, one.name: module})]
                leaves = tuple(one.leaf for one in selected)
                held = [weight for weight in _behind(module, leaves) if id(weight) not in covered]
                reasons = (packed_site(one, wiring, modules) for one in selected)
                why = next((one for one in reasons if isinstance(one, Refusal)), None)
            elif held and place.selects_group(dict.fromkeys({name, carriers.get(name, name)}, module)):
                why = _why(place.kind, name, module, carriers.get(name), wiring, modules)
            if held and why:
                told[name] = f"{name or 'the network itself'} ({stock_class(module).__name__}): {why}"
                lost += sum(weight.numel() for weight in held)
                covered |= {id(weight) for weight in held}
                break
    if told:
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        each = "1 layer takes no gate" if len(told) == 1 else f"{len(told)} layers take no gates"
        attached(net).say(
            f"{each} at {' or '.join(map(repr, kinds))}, with {100 * lost / total:.3g} % of this {type(net).__name__}'s "
            f"parameters, which all stay: {'; '.join([*told.values()][:_SHOWN])}{more}. What is asked for (a density, a budget) is "
            f"reached by the other layers alone; what is left out on purpose is named: at='{kinds[0]}:!{'|!'.join([*told][:_SHOWN])}'"
        )


def _why(
    kind: str, name: str, module: nn.Module, layer: str | None, wiring: Wiring, modules: dict[str, nn.Module]
) -> Refusal | None:
    """Why this module has no gate, None where it is none of those to name."""
    if layer is None and isinstance(module, _RECURRENT):
        return Refusal("its hidden units are not known: it begins with no zeros, or its class is none of torch")
    if kind == "units":
        known = layer is not None or not type(module).__module__.startswith("torch.nn")
        return None if known else Refusal("the captured forward does not call it as a layer")
    if layer is not None:
        made = single_site("weights", layer, wiring, modules)
        return made if isinstance(made, Refusal) else None
    if gateable(module) is not None:
        return Refusal("the captured forward does not call it as a layer")
    return Refusal(
        "its class is not a stock layer"
        if "weight" in module._parameters
        else "a parameter of its own, and no layer's weight"
    )


def _behind(module: nn.Module, leaves: tuple[str, ...]) -> Iterator[nn.Parameter]:
    """The parameters of these names, or those that a hook computes them from."""
    for name, parameter in module.named_parameters():
        if name in leaves or name.removesuffix("_orig") in leaves:
            yield parameter


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The module's own parameters with more than one dimension."""
    for parameter in module._parameters.values():
        if parameter is not None and sum(size > 1 for size in parameter.shape) > 1:
            yield parameter


def _in_gate(name: str, net: nn.Module) -> bool:
    """Whether this module is a gate, or inside one."""
    module: Any = net
    for part in name.split(".") if name else ():
        module = module._modules[part]
        if isinstance(module, Gate):
            return True
    return False
