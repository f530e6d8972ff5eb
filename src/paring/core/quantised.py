"""Networks with quantised weights, as the floats that these stand for.

Two kinds are known. Tensors of classes of their own that say what they stand for (`dequantize`, `get_original_weight`), as torchao
puts them in place of weights; and the layers of `torch.ao.nn.quantized`, dynamic ones too, which hold packed integers. Neither
torchao nor these layers are imported here: what was not loaded cannot be in a network.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from paring.core.warning import ParingWarning

_LAYERS = "torch.ao.nn."
_ELSEWHERE = "torch.distributed."  # sharded tensors wrap others as well, and are no quantised ones


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor holds integers that stand for floats."""
    if tensor.is_quantized:
        return True
    return is_traceable_wrapper_subclass(tensor) and not type(tensor).__module__.startswith(_ELSEWHERE)


def floats_of(tensor: Tensor, name: str, what: str, error: type[Exception] = ValueError) -> Tensor:
    """The numbers that a tensor stands for; itself when it is not quantised.

    Args:
        tensor: any.
        name: of it, for messages.
        what: the function that takes it, for messages.
        error: the exception that this function raises.

    Raises:
        error: its class does not say what it stands for.
    """
    if not is_quantised(tensor):
        return tensor
    original: Callable[[], Any] = getattr(tensor, "get_original_weight", tensor.dequantize)
    try:
        found = original()
    except Exception as reason:  # whatever classes of others raise
        raise error(_refusal(tensor, name, what)) from reason
    if not isinstance(found, Tensor) or is_quantised(found) or found.shape != tensor.shape:
        raise error(_refusal(tensor, name, what))
    return found.detach()


def in_floats(net: nn.Module, what: str, error: type[Exception] = ValueError) -> nn.Module:
    """A network without quantised weights: itself when it has none, else a copy, and a `ParingWarning` that says so.

    Args:
        net: a network.
        what: the function that takes it, for messages.
        error: the exception that this function raises.

    Raises:
        error: a layer or tensor is quantised in a way that is not known here.
    """
    places = [path for path, module in net.named_modules() if _is_quantised_layer(module) or _quantised(module)]
    if not places:
        return net
    _refuse_unknown(net, what, error)
    found = _converted(copy.deepcopy(net))
    done: dict[int, Tensor] = {}
    for path, module in found.named_modules():
        for name, held in _quantised(module).items():
            if id(held) not in done:
                made = floats_of(held, f"{path}.{name}".lstrip("."), what, error)
                done[id(held)] = nn.Parameter(made, held.requires_grad) if name in module._parameters else made
            setattr(module, name, done[id(held)])
            module.__dict__.pop("extra_repr", None)  # torchao's, about the weight that was there
    some = ", ".join(repr(path) for path in places[:3]) + (", ..." if len(places) > 3 else "")
    warnings.warn(
        f"{what} takes the numbers that the quantised weights of {some} stand for; the network it makes of them computes in floats",
        ParingWarning,
        stacklevel=3,
    )
    return found


def _quantised(module: nn.Module) -> dict[str, Tensor]:
    """The quantised tensors that a module holds itself."""
    held = {**module._parameters, **module._buffers}
    return {name: value for name, value in held.items() if value is not None and is_quantised(value)}


def _is_quantised_layer(module: nn.Module) -> bool:
    """Whether the class comes from where torch keeps layers that compute in integers."""
    place = type(module).__module__
    return place.startswith(_LAYERS) and ".quantized" in place and ".reference" not in place and ".qat" not in place


def _float_layers() -> dict[type[nn.Module], Callable[[Any], nn.Module]]:
    """What stands for a layer that computes in integers."""
    known: dict[type[nn.Module], Callable[[Any], nn.Module]] = {}
    static: Any = sys.modules.get("torch.ao.nn.quantized")
    dynamic: Any = sys.modules.get("torch.ao.nn.quantized.dynamic")
    if static is not None:
        from torch.ao.quantization import DeQuantStub, QuantStub

        known |= {
            static.Linear: _linear,
            static.Quantize: lambda _: QuantStub(),
            static.DeQuantize: lambda _: DeQuantStub(),
        }
        known |= {static.Conv1d: _convolution(nn.Conv1d), static.Conv2d: _convolution(nn.Conv2d)}
        known |= {static.Conv3d: _convolution(nn.Conv3d)}
    if dynamic is not None:
        known[dynamic.Linear] = _linear
    return known


def _linear(given: Any) -> nn.Module:
    bias = given.bias()
    return _filled(nn.Linear(given.in_features, given.out_features, bias is not None), given.weight(), bias)


def _convolution(kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]) -> Callable[[Any], nn.Module]:
    def made(given: Any) -> nn.Module:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        sizes = {name: getattr(given, name) for name in names}
        bias = given.bias()
        return _filled(kind(**sizes, bias=bias is not None), given.weight(), bias)

    return made


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.dequantize())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    found: nn.Module = layer.eval()
    return found


def _converted(net: nn.Module) -> nn.Module:
    """The same network with layers that compute in floats."""
    known = _float_layers()
    if type(net) in known:
        return known[type(net)](net)
    made: dict[int, nn.Module] = {}
    for module in list(net.modules()):
        for name, child in module._modules.items():
            if child is not None and type(child) in known:
                if id(child) not in made:
                    made[id(child)] = known[type(child)](child)
                module._modules[name] = made[id(child)]
    return net


def _refuse_unknown(net: nn.Module, what: str, error: type[Exception]) -> None:
    known = _float_layers()
    for path, module in net.named_modules():
        if not _is_quantised_layer(module) or type(module) in known:
            continue
        inside = any(path.startswith(f"{other}.") for other, one in net.named_modules() if type(one) in known and other)
        if not inside:
            raise error(
                f"{what} knows no layer in floats for {path!r}, a {type(module).__module__}.{type(module).__name__}: hand over "
                "the network from before it was quantised"
            )


def _refusal(tensor: Tensor, name: str, what: str) -> str:
    return (
        f"{what} cannot tell what numbers {name!r} stands for: it is a {type(tensor).__module__}.{type(tensor).__name__} without a "
        "dequantize() that gives a tensor of its shape; hand over the network from before it was quantised"
    )
