"""Networks that `torch.nn.utils.prune` put masks on: their weights are computed by a hook, and cannot be copied."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import prune


def multiplied_in(net: nn.Module) -> nn.Module:
    """The network itself where there are no such masks, else a copy in which they are multiplied into the weights."""
    masked = [
        (path, hook._tensor_name)
        for path, module in net.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    if not masked:
        return net
    held: list[tuple[nn.Module, str, Tensor]] = []
    for path, leaf in masked:  # what the hook left there belongs to a graph, which no copy takes
        module = net.get_submodule(path)
        held.append((module, leaf, getattr(module, leaf)))
        setattr(module, leaf, getattr(module, leaf).detach())
    try:
        plain = copy.deepcopy(net)
    finally:
        for module, leaf, value in held:
            setattr(module, leaf, value)
    for path, leaf in masked:
        prune.remove(plain.get_submodule(path), leaf)
    return plain
