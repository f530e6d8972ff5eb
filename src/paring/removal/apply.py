"""Carry out a `ShrinkPlan` on a network: folds and merges, then cuts, then the size attributes of the layers.

Parameters keep their names, order, dtype, device and `requires_grad`; a gradient that is present is cut alike. Each cut
parameter is a new `nn.Parameter`. Modules keep their classes (but see `SelectLinear`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.analysis.weights import TRANSPOSED
from paring.core.select_linear import SelectLinear
from paring.removal.plan import Merge, ShrinkPlan


def apply(net: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Shrink `net` in place and return it."""
    with torch.no_grad():
        for fold in (*plan.folds, *plan.scales):
            _add(*_find(net, fold.name), fold.amount)
        for merge in plan.merges:
            _merge(*_find(net, merge.name), merge)
        for name in dict.fromkeys(cut.name for cut in plan.cuts):
            module, leaf = _find(net, name)
            _replace(module, leaf, plan, name)
            resize(module)
        for name, size in plan.sizes.items():
            net.get_submodule(name).num_features = size  # type: ignore[assignment]
        for name, reads in plan.selects.items():
            _select(net.get_submodule(name), reads)
    return net


def resize(module: nn.Module) -> None:
    """Set the size attributes of a stock layer to what its tensors say."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        sizes = [len(t) for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = sizes[0] if sizes else module.num_features
        return
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, TRANSPOSED):
        if module.groups > 1:
            module.groups = weight.shape[0] // (module.in_channels // module.groups)
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups > 1:
            module.groups = weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = weight.shape[0] // (module.num_channels // module.num_groups)
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _find(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return net.get_submodule(path), leaf


def _add(module: nn.Module, leaf: str, amount: Tensor) -> None:
    held = getattr(module, leaf)
    if held is None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        held = nn.Parameter(torch.zeros(len(amount), dtype=weight.dtype, device=weight.device))
        held.requires_grad_(weight.requires_grad)
        module.register_parameter(leaf, held)
    held.copy_(held.double() + amount.to(held.device))


def _merge(module: nn.Module, leaf: str, merge: Merge) -> None:
    held: Tensor = getattr(module, leaf)
    slices = held.movedim(merge.dim, 0)
    others = slices[merge.others.to(held.device)].double()
    amount = torch.tensordot(merge.factors.to(held.device), others, 1)
    slices[merge.into] = (slices[merge.into].double() + amount).to(held.dtype)


def _replace(module: nn.Module, leaf: str, plan: ShrinkPlan, name: str) -> None:
    old = getattr(module, leaf)
    new = plan.cut(name, old.detach())
    if not isinstance(old, nn.Parameter):
        setattr(module, leaf, new)
        return
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)
    if old.grad is not None:
        parameter.grad = plan.cut(name, old.grad)
    setattr(module, leaf, parameter)


def _select(module: nn.Module, reads: Tensor) -> None:
    if isinstance(module, SelectLinear):
        module.reads = module.reads[reads.to(module.reads.device)]
        return
    assert isinstance(module, nn.Linear)
    module.__class__ = SelectLinear
    module.register_buffer("reads", reads.to(module.weight.device))
