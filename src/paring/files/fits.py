"""Whether the tensors of a layer fit each other and its settings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paring.core import kind_of
from paring.core.recurrent import gates_of, misfit_recurrent
from paring.core.select_linear import SelectLinear


def misfit(module: nn.Module, inputs: int | None = None, groups: int | None = None) -> str:
    """What does not fit in a layer that has taken tensors of a file, before it is resized; nothing if all does.

    inputs: of a `SelectLinear`, how many it may choose from; None allows any. groups: of a convolution, where they are of
    another size than the factory's.
    """
    if gates_of(module):
        return misfit_recurrent(module)
    kind = kind_of(module)
    if kind is None or not kind.sizes:
        return ""
    weight = getattr(module, kind.scaled[0], None)
    rest = {leaf: one for leaf in kind.per_unit if isinstance(one := getattr(module, leaf, None), Tensor)}
    if kind.column_dim is None and kind.unit_dim == 0 and (problem := _lengths(weight, *rest.values())):
        return problem
    if not isinstance(weight, Tensor):
        return ""
    kernel = getattr(module, "kernel_size", None)
    if kernel is not None and tuple(weight.shape[2:]) != kernel:
        return f"has kernels of {tuple(weight.shape[2:])}, the factory's of {kernel}"
    outputs = weight.shape[kind.unit_dim]
    size = kind.group_size(module)
    if groups is not None:
        if not size or kind.unit_dim != 0 or len(weight) % groups:
            return f"has {len(weight)} channels in {groups} groups"
    elif size:
        if len(weight) % size:
            return f"has {len(weight)} channels, in groups of {size}"
        outputs *= len(weight) // size if kind.unit_dim == 1 else 1
    if isinstance(module, SelectLinear):
        reads = module.reads
        if reads.dtype != torch.int64 or reads.shape != weight.shape[1:]:
            return f"reads {tuple(reads.shape)} inputs of type {reads.dtype}, and its weight takes {weight.shape[1]}"
        if len(reads) and (int(reads.min()) < 0 or (inputs is not None and int(reads.max()) >= inputs)):
            return f"reads inputs {int(reads.min())} to {int(reads.max())}, and there are {inputs}"
    for leaf, one in rest.items():
        flat = one.dim() == 1 or (kind.column_dim is None and one.shape == weight.shape)
        if one.shape[:1] != (outputs,) or (leaf == "bias" and not flat):
            return f"has a {leaf} of {tuple(one.shape)} and {outputs} outputs"
    return ""


def _lengths(*given: Tensor | None) -> str:
    found = [tuple(one.shape) for one in given if one is not None]
    return f"has tensors of {', '.join(map(str, found))}" if len({math.prod(shape) for shape in found}) > 1 else ""
