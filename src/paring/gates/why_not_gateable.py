"""Why a layer or norm cannot carry a gate, for the user's eyes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from paring.analysis import Wiring
from paring.core import Refusal, gateable, kind_of
from paring.core.recurrent import gates_of

_PROJECTIONS = ("in_proj", "q_proj", "k_proj", "v_proj")
_NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm")


def of_carrier(name: str, module: nn.Module | None) -> Refusal | None:
    """Why the module (None: a loose parameter) cannot hold a gate at all; None when it can."""
    if module is None or (isinstance(module, nn.MultiheadAttention) and module.bias_k is not None):
        return Refusal(f"'{name}' is a parameter that no layer of its own computes with")
    near, known = kind_of(module), gateable(module)
    norm = near is not None and near.operation in _NORMS
    if known is None:
        kind = type(module).__name__
        if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
            return Refusal(f"read or written by '{name}', which is part of an nn.MultiheadAttention, whose width stays")
        what = f"its norm '{name}' is a {kind}, which carries no gates"
        return Refusal(what if norm else f"its class {kind} is not a stock layer")
    if (replaced := of_instance(name, module)) is not None:
        return replaced
    if known.unit_factors is not None:
        return next(
            (
                of_hook(name, module)
                for leaf in known.packed(module)
                if "." not in leaf and leaf not in module._parameters
            ),
            None,
        )
    if not known.scaled:
        return Refusal(known.elsewhere)
    if not norm and known.scaled[0] not in module._parameters:
        return of_hook(name, module)
    if known.operation == "embedding" and module.sparse:
        return Refusal(
            f"'{name}' has sparse gradients, which tell nothing of closed weights: build it with sparse=False"
        )
    if norm and not (getattr(module, "affine", True) and isinstance(module.weight, Tensor)):
        return Refusal(f"its norm '{name}' has no scale and shift (affine=False) to fold a gate into")
    return None


def of_instance(name: str, module: nn.Module) -> Refusal | None:
    """Why a forward that was put on the module itself is in the way; None where there is none."""
    if "forward" not in vars(module):
        return None
    return Refusal(
        f"its forward was replaced on the instance, which would go past gates on '{name}': take it off (del layer.forward)"
    )


def of_hook(name: str, module: nn.Module) -> Refusal:
    """Of a weight that is computed from other parameters."""
    off = "torch.nn.utils.prune.remove, remove_weight_norm or remove_spectral_norm"
    if is_parametrized(module):
        off = "torch.nn.utils.parametrize.remove_parametrizations"
    return Refusal(f"the weight of '{name}' is computed from other parameters: take that off first, with {off}")


def of_layer(name: str, wiring: Wiring, modules: dict[str, nn.Module]) -> Refusal | None:
    """Why a gate would not govern all that the layer's parameters do; None when it would."""
    layer, module = wiring.layer(name), modules.get(name)
    if layer.foreign:
        return Refusal(layer.foreign)
    for other, held in modules.items():
        if module is not None and other != name and getattr(held, "weight", None) is getattr(module, "weight", 0):
            return Refusal(f"its weight is shared with '{other}'")
    return None


def carrier_of(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The module that carries the gates of a layer or norm: itself, the attention of a projection, or a recurrent layer."""
    owner = name
    while name not in modules and owner:
        owner, _, last = owner.rpartition(".")
        held = modules.get(owner)
        if isinstance(held, nn.MultiheadAttention) and last.startswith(_PROJECTIONS):
            return owner
        if held is not None and gates_of(held):
            return owner
    return name
