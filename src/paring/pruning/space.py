"""What a gated network would take in bytes: of its tensors, and at the peak of a forward pass.

The first is exact. The second is a prediction, smooth in the widths: the weights, and what goes into and comes out of the
layers, the largest layers counting most. `prune` measures the finished network, and chooses again where that is off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core import Inputs
from paring.cost import Cost
from paring.pruning.gated import GatedCopy
from paring.pruning.passed import passed

_SHARPNESS = 8.0  # of the norm that stands for a maximum


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Bytes:
    """Bytes of parameters and persistent buffers at any widths.

    Args:
        gated: the network, all gates open.
    """

    def __init__(self, gated: GatedCopy) -> None:
        modules = dict(gated.net.named_modules())
        self.dense = gated.model()
        once = {
            id(tensor): tensor for tensor in gated.net.state_dict(keep_vars=True).values()
        }  # ties once; gates keep none
        self.whole = sum(_size(tensor) for tensor in once.values())
        self._each = torch.tensor([_per_parameter(modules.get(name)) for name in self.dense.names], dtype=torch.float64)

    def bytes(self, cost: Cost) -> Tensor:
        """Bytes at the widths of this cost, a 0-dim tensor."""
        gone = torch.stack([a.parameters - b.parameters for a, b in zip(self.dense.rows, cost.rows, strict=True)])
        return self.whole - (gone * self._each.to(gone)).sum()

    def share(self, cost: Cost) -> Tensor:
        """`bytes` over those of the dense network."""
        return self.bytes(cost) / self.whole


class Memory:
    """Bytes at the peak of a forward pass at any widths, predicted.

    Args:
        gated: the network, all gates open.
        inputs: a batch, of the size that is to fit.
    """

    def __init__(self, gated: GatedCopy, inputs: Inputs) -> None:
        self._tensors = Bytes(gated)
        self._through = {name: (_size(x), _size(y)) for name, (x, y) in passed(gated, inputs).items()}
        self._dense = self.bytes(self._tensors.dense)

    def bytes(self, cost: Cost) -> Tensor:
        """Predicted bytes at the widths of this cost, a 0-dim tensor."""
        sizes = []
        for name, (x, y) in self._through.items():
            row, dense = cost.row(name), self._tensors.dense.row(name)
            sizes.append(x * row.inputs / dense.inputs.clamp(min=1) + y * row.outputs / dense.outputs)
        stored = self._tensors.bytes(cost)
        return stored + torch.stack(sizes).norm(_SHARPNESS) if sizes else stored

    def share(self, cost: Cost) -> Tensor:
        """`bytes` over those of the dense network."""
        return self.bytes(cost) / self._dense


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _per_parameter(module: nn.Module | None) -> float:
    """Bytes that go with each parameter of a layer: its own, and for a norm those of its statistics."""
    own = [] if module is None else [*module.parameters(recurse=False)]
    if module is None or not own:
        return 4.0
    statistics = [tensor for tensor in module.buffers(recurse=False) if tensor.dim()]
    return sum(map(_size, [*own, *statistics])) / sum(parameter.numel() for parameter in own)
