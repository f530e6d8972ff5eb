"""A network as a graph of modules (torch.fx), with the shapes that an example has in it, and what its nodes are."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from paring.bits.edges import code_of
from paring.core import Inputs
from paring.hard.units import SaturatedReLU

Shape = tuple[int, ...]
_RISING = (nn.Hardtanh, nn.ReLU, nn.ReLU6, SaturatedReLU)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class BitsError(ValueError):
    """The network could not be turned into one of bits; the message says what, where and what to do."""


class _Tracer(fx.Tracer):
    """Stock layers and those of this package are nodes; the user's own modules are looked into.

    While it traces, every call of a module in this process comes by here; those of other threads go on as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return False
        return type(m).__module__.startswith(("torch.", "paring.hard", "paring.core.select_linear"))


class Traced:
    """The network as nodes.

    Attributes:
        net: modules and graph.
        shapes: of the nodes whose value is a tensor.

    Raises:
        BitsError: the network cannot be traced.
    """

    def __init__(self, net: nn.Module, inputs: Inputs) -> None:
        try:
            self.net = fx.GraphModule(net, _Tracer().trace(net))
            shapes = _Shapes(self.net)
            with torch.no_grad():
                shapes.run(*in_order(self.net, inputs))
        except Exception as error:  # fx raises whatever the network's own code raises
            raise BitsError(
                f"{type(net).__name__} could not be traced with torch.fx: {type(error).__name__}: {str(error)[:300]} "
                "Pass a network of modules whose forward has no Python branches on tensors, and an example that it "
                "takes (of a network that pr.compact made: its module form)."
            ) from error
        self.shapes: dict[fx.Node, Shape] = shapes.found

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls, if it is a module."""
        return self.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def source(self, node: fx.Node) -> fx.Node:
        """The first input of a node."""
        return node.all_input_nodes[0]

    def idle(self, node: fx.Node) -> bool:
        """Whether it does nothing in eval mode."""
        if node.op == "call_function" and node.target in (F.dropout, F.dropout2d, torch.dropout):
            return len(node.all_input_nodes) == 1 and self._same(node)
        return isinstance(self.module(node), _NOTHING)

    def rising(self, node: fx.Node) -> bool:
        """Whether it is a module that is monotone in every channel, each alone, and rounds the same way in all shapes."""
        module = self.module(node)
        if isinstance(module, _NORMS):
            return not module.training and getattr(module, "running_mean", None) is not None
        if type(module) is nn.LeakyReLU:
            return module.negative_slope >= 0
        return type(module) in _RISING or (self.idle(node) and module is not None)

    def pool(self, node: fx.Node) -> nn.MaxPool2d | None:
        """The max pooling of images that a node stands for."""
        module = self.module(node)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            return module if len(self.shapes.get(node, ())) == 4 else None
        if node.op == "call_function" and node.target is F.max_pool2d and len(node.all_input_nodes) == 1:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
            given.pop("input", None)
            made = nn.MaxPool2d(**given)
            return made if not made.return_indices and len(self.shapes.get(node, ())) == 4 else None
        return None

    def flattens(self, node: fx.Node) -> bool:
        """Whether it turns (N, C, H, W) into (N, C H W)."""
        flat = node.op == "call_method" and node.target in ("view", "reshape", "flatten")
        flat |= node.op == "call_function" and node.target in (torch.flatten, torch.reshape)
        if not (flat or type(self.module(node)) is nn.Flatten):
            return False
        before, after = (self.shapes.get(n, ()) for n in (self.source(node), node))
        return len(before) == 4 and after == (before[0], math.prod(before[1:]))

    def unit(self, node: fx.Node) -> nn.Module | None:
        """The hard-threshold unit that a node applies to (N, C) or (N, C, H, W)."""
        module = self.module(node)
        known = module is not None and code_of(module) is not None and len(self.shapes.get(node, ())) in (2, 4)
        return module if known else None

    def _same(self, node: fx.Node) -> bool:
        return not bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def in_order(net: fx.GraphModule, inputs: Inputs) -> tuple[Any, ...]:
    """The arguments as an interpreter of the graph takes them: by place."""
    bound = inspect.signature(net.forward).bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    return bound.args


class _Shapes(fx.Interpreter):
    """Runs the graph and notes shapes."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.found: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        return result
