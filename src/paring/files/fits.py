"""Whether the tensors of a stock layer fit each other and its settings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paring.analysis.weights import TRANSPOSED
from paring.core.select_linear import SelectLinear


def misfit(module: nn.Module, inputs: int | None = None) -> str:
    """What does not fit in a layer that has taken tensors of a file, before `resize`; nothing if all does.

    inputs: of a `SelectLinear`, how many it may choose from; None allows any.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return _lengths(weight, bias, module.running_mean, module.running_var)
    if isinstance(module, nn.GroupNorm):
        if problem := _lengths(weight, bias):
            return problem
        size = module.num_channels // module.num_groups
        return f"has {len(weight)} channels, in groups of {size}" if weight is not None and len(weight) % size else ""
    if not isinstance(weight, Tensor):
        return ""
    outputs = weight.shape[0]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if tuple(weight.shape[2:]) != module.kernel_size:
            return f"has kernels of {tuple(weight.shape[2:])}, the factory's of {module.kernel_size}"
        if problem := _groups(outputs, module.out_channels, module.groups):
            return problem
    elif isinstance(module, TRANSPOSED):
        if tuple(weight.shape[2:]) != module.kernel_size:
            return f"has kernels of {tuple(weight.shape[2:])}, the factory's of {module.kernel_size}"
        if problem := _groups(outputs, module.in_channels, module.groups):
            return problem
        size = module.in_channels // module.groups
        outputs = weight.shape[1] * (outputs // size if module.groups > 1 else 1)
    if isinstance(module, SelectLinear):
        reads = module.reads
        if reads.dtype != torch.int64 or reads.shape != weight.shape[1:]:
            return f"reads {tuple(reads.shape)} inputs of type {reads.dtype}, and its weight takes {weight.shape[1]}"
        if len(reads) and (int(reads.min()) < 0 or (inputs is not None and int(reads.max()) >= inputs)):
            return f"reads inputs {int(reads.min())} to {int(reads.max())}, and there are {inputs}"
    if isinstance(bias, Tensor) and bias.shape != (outputs,):
        return f"has a bias of {tuple(bias.shape)} and {outputs} outputs"
    return ""


def _groups(channels: int, before: int, groups: int) -> str:
    """Whether so many channels are whole groups of the size that there was."""
    size = before // groups
    return f"has {channels} channels, in groups of {size}" if groups > 1 and channels % size else ""


def _lengths(*given: Tensor | None) -> str:
    found = [tuple(one.shape) for one in given if one is not None]
    return f"has tensors of {', '.join(map(str, found))}" if len({math.prod(shape) for shape in found}) > 1 else ""
