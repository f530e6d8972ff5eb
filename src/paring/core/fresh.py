"""Networks without what their modules computed from their parameters in eval mode and kept, such as tables of biases by device.

Such modules drop it in a `train` of their own. As long as it is there a network does not read the parameters it came from. And
without the graphs of what a forward left in attributes.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def fresh(net: nn.Module) -> nn.Module:
    """The network itself where no module has a `train` of its own, else a copy that keeps nothing; modes stay as they are."""
    return refresh(copy.deepcopy(net)) if any(map(_own_train, net.modules())) else net


def refresh(net: nn.Module) -> nn.Module:
    """Let the modules drop what they keep, in place; modes stay as they are."""
    modes = [(module, module.training) for module in net.modules()]
    for module, _ in modes:
        if _own_train(module):
            module.train()
    for module, mode in modes:
        module.training = mode
    return net


def _own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train


def let_go(net: nn.Module) -> nn.Module:
    """Let what a forward left in attributes, such as maps of attention, go of the graph that made it, in place.

    No copy can hold a graph. Weights that hooks compute stay as they are.
    """
    for module in net.modules():
        for name, value in vars(module).items():
            if name not in ("weight", "bias") and any(map(_in_graph, pytree.tree_leaves(value))):
                vars(module)[name] = pytree.tree_map(lambda one: one.detach() if _in_graph(one) else one, value)
    return net


def _in_graph(value: object) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None
