"""The weight of a layer, whatever its layout: which dimension holds the units, which the input columns, which groups.

Linear and convolution weights are (outputs, inputs / groups, kernel...), those of transposed convolutions are
(inputs, outputs / groups, kernel...). In a layer with groups, the units of group g read the columns of group g only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core import Kind, kind_of


def known(module: nn.Module) -> Kind:
    """The kind of a layer or norm that the interpretation found."""
    kind = kind_of(module)
    assert kind is not None, f"{type(module).__name__} is of no registered kind"
    return kind


def is_a(module: nn.Module, operation: str) -> bool:
    """Whether this is the operation that the module's kind computes."""
    kind = kind_of(module)
    return kind is not None and kind.operation == operation


def groups_of(module: nn.Module) -> int:
    """Number of groups, 1 where there are none."""
    return known(module).groups_in(module)


def living_groups(groups: int, kept: Tensor) -> int:
    """In how many of so many groups some unit stays; kept: (units,) bool."""
    return int(kept.view(groups, -1).any(1).sum())


def dims(module: nn.Module) -> tuple[int, int]:
    """The dimensions of the weight that hold units and input columns (per group where there are groups)."""
    kind = known(module)
    return kind.unit_dim, 1 - kind.unit_dim if kind.column_dim is None else kind.column_dim


def weight_of(module: nn.Module) -> Tensor:
    """The weight, without gradient, on the CPU."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().cpu()


def used(module: nn.Module) -> Tensor:
    """Has unit u any nonzero weight on column j? (outputs, inputs), block-diagonal for groups."""
    nonzero = weight_of(module).bool()  # the same as != 0, twelve times as fast
    nonzero = some(nonzero.flatten(2), 2) if nonzero.dim() > 2 else nonzero
    groups = groups_of(module)
    if groups > 1:
        rows, columns = nonzero.shape[0] // groups, nonzero.shape[1]
        whole = torch.zeros(groups, rows, groups, columns, dtype=torch.bool)
        each = torch.arange(groups)
        whole[each, :, each] = nonzero.view(groups, rows, columns)
        nonzero = whole.view(groups * rows, groups * columns)
    return nonzero.T if dims(module)[0] == 1 else nonzero


def some(flags: Tensor, dim: int) -> Tensor:
    """`flags.any(dim)`, thirty times as fast: of bytes, torch takes the maximum in vectors."""
    if not flags.shape[dim]:
        return flags.any(dim)
    return flags.view(torch.uint8).amax(dim).view(torch.bool)


def columns_of(module: nn.Module, chosen: Tensor) -> Tensor:
    """Some input columns of a layer without groups, summed over the kernel: float64 (outputs, chosen)."""
    weight = weight_of(module).transpose(0, dims(module)[0])[:, chosen].double()
    return weight.flatten(2).sum(2) if weight.dim() > 2 else weight
