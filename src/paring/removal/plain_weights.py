"""Weights that a forward computes from parameters, as parameters: weight standardisation, weight norm, spectral norm."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import Captured, capture
from paring.analysis.freeze_weights import freeze_weights
from paring.analysis.interpret import interpret
from paring.analysis.loose import held_tensor, made_of
from paring.analysis.state import Site, module_path
from paring.analysis.work import moving
from paring.core import Example, Inputs, derived, kind_of, plain_net

_CLOSE = 1e-4  # of the largest output, in float32


@alone()
def plain_weights(net: nn.Module, example: Example) -> nn.Module:
    """A copy of the network in which layers hold as their weights what they computed before, and are of torch's own class.

        net = paring.removal.plain_weights(net, x[:2])     # an NFNet of ordinary convolutions
        small, result = pr.prune(net, loader, to=pr.Budget(macs=0.5))

    The same function; only training goes on another way, as the weights are no longer standardised or normed in every step.
    Units of such layers can then be gated and removed. Parametrisations of `torch.nn.utils.parametrize` go in any case. Where
    a class computes its weight in its forward, it becomes the layer of torch that it derives from, if that is all it does: one
    that also pads its input, say, or has an activation, is left as it is.

    Args:
        net: a network; it stays as it is.
        example: an input with the batch first, a tuple of inputs or a mapping of keyword arguments.

    Raises:
        paring.CaptureError: the network cannot be captured.
        ValueError: the copy computes something else, as a class keeps sizes (stride, padding) that its forward does not use.
    """
    net = plain_net(net, "plain_weights")
    plain, inputs = copy.deepcopy(net), Inputs.of(example)
    with freeze_weights(plain):
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                _own_class(module)
                for leaf in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    captured = capture(plain, inputs)
    sites = {site.name: site for site in interpret(plain, captured, training=plain.training).sites if not site.plain}
    moves = moving(list(captured.nodes), {*captured.tensors, *captured.constants})
    found = [(site, tensors) for site in sites.values() if (tensors := _computed(plain, captured, site, moves))]
    for site, tensors in found:
        _replace(site.module, tensors)
    if found:
        _compare(net, plain, inputs, [site.name for site, _ in found])
    return plain


def _own_class(module: nn.Module) -> None:
    """A parametrised module has a class made for it, which its copies share: torch would take the weight off all of them."""
    shared = type(module)
    held = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, held)


def _computed(net: nn.Module, captured: Captured, site: Site, moves: set[fx.Node]) -> dict[str, Tensor | None] | None:
    """Weight and bias of a layer as its forward computes them; None where it does other things besides."""
    module, node = site.module, site.node
    kind = kind_of(module)
    inside = [one for one in captured.nodes if one in moves and module_path(one) == site.name]
    if kind is None or kind.operation not in ("linear", "conv") or not derived(module) or inside != [node]:
        return None
    given: tuple[Any, ...] = (*node.args, None, None)
    weight, bias = given[1], node.kwargs.get("bias", given[2])
    if weight in moves or bias in moves or "forward" in vars(module):
        return None
    found = {"weight": _value(net, captured, weight), "bias": None if bias is None else _value(net, captured, bias)}
    held = module.weight
    assert isinstance(held, Tensor)
    return found if isinstance(found["weight"], Tensor) and found["weight"].shape == held.shape else None


@torch.no_grad()
def _value(net: nn.Module, captured: Captured, source: fx.Node) -> Tensor:
    """What a result that depends on no input is."""
    made: dict[fx.Node, Any] = {}
    for node in made_of(source):
        held = held_tensor(net, captured, node)
        made[node] = held if held is not None else _call(node, made)
    value: Tensor = made[source]
    return value.detach().clone()


def _call(node: fx.Node, made: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: made[one])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _replace(module: nn.Module, tensors: dict[str, Tensor | None]) -> None:
    """Make a layer one of its kind's own class, with these parameters alone."""
    kind, learns = kind_of(module), any(p.requires_grad for p in module.parameters(recurse=False))
    assert kind is not None
    module._parameters.clear()
    module._buffers.clear()
    module.__class__ = kind.layer
    for leaf, value in tensors.items():
        module.register_parameter(leaf, None if value is None else nn.Parameter(value, requires_grad=learns))


@torch.no_grad()
def _compare(net: nn.Module, plain: nn.Module, inputs: Inputs, names: list[str]) -> None:
    answers = []
    for one in (net, plain):
        modes = [(module, module.training) for module in one.modules()]
        one.eval()
        try:
            answers.append(pytree.tree_leaves(one(*inputs.args, **inputs.kwargs)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"with plain weights this {type(net).__name__} fails with {error}: {_why(names)}"
            ) from None
        finally:
            for module, mode in modes:
                module.training = mode
    for before, after in zip(*answers, strict=True):
        if isinstance(before, Tensor) and before.is_floating_point():
            apart, size = float((before - after).abs().max()), float(before.abs().max())
            if not apart <= _CLOSE * max(size, 1e-30):
                raise ValueError(
                    f"with plain weights this {type(net).__name__} computes something else ({apart:.3g} apart, of outputs up to "
                    f"{size:.3g}): {_why(names)}"
                )


def _why(names: list[str]) -> str:
    return f"one of {', '.join(names[:5])} keeps a stride, a padding or groups that its forward does not use"
