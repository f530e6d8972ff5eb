"""The weight of a layer, whatever its layout: which dimension holds the units, which the input columns, which groups.

Linear and convolution weights are (outputs, inputs / groups, kernel...), those of transposed convolutions are
(inputs, outputs / groups, kernel...). In a layer with groups, the units of group g read the columns of group g only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def groups_of(module: nn.Module) -> int:
    """Number of groups, 1 where there are none."""
    groups = getattr(module, "groups", 1)
    return groups if isinstance(groups, int) else 1


def dims(module: nn.Module) -> tuple[int, int]:
    """The dimensions of the weight that hold units and input columns (per group where there are groups)."""
    return (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)


def weight_of(module: nn.Module) -> Tensor:
    """The weight, without gradient, on the CPU."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().cpu()


def used(module: nn.Module) -> Tensor:
    """Has unit u any nonzero weight on column j? (outputs, inputs), block-diagonal for groups."""
    nonzero = weight_of(module) != 0
    nonzero = nonzero.flatten(2).any(2) if nonzero.dim() > 2 else nonzero
    groups = groups_of(module)
    if groups > 1:
        rows, columns = nonzero.shape[0] // groups, nonzero.shape[1]
        whole = torch.zeros(groups, rows, groups, columns, dtype=torch.bool)
        each = torch.arange(groups)
        whole[each, :, each] = nonzero.view(groups, rows, columns)
        nonzero = whole.view(groups * rows, groups * columns)
    return nonzero.T if isinstance(module, TRANSPOSED) else nonzero


def columns_of(module: nn.Module, chosen: Tensor) -> Tensor:
    """Some input columns of a layer without groups, summed over the kernel: float64 (outputs, chosen)."""
    weight = weight_of(module).transpose(0, dims(module)[0])[:, chosen].double()
    return weight.flatten(2).sum(2) if weight.dim() > 2 else weight
