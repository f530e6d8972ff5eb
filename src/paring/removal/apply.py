"""Carry out a `ShrinkPlan` on a network: folds and merges, then cuts, then the size attributes of the layers.

Parameters keep their names, order, dtype, device and `requires_grad`; a gradient that is present is cut alike. Each cut
parameter is a new `nn.Parameter`. Modules keep their classes (but see `SelectLinear` and
`PaddedLayerNorm`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core import kind_of
from paring.core.padded_layer_norm import pad
from paring.core.recurrent import gates_of, resize_recurrent
from paring.core.select_linear import SelectLinear
from paring.core.written_sizes import write_numbers, write_sizes
from paring.removal.plan import Merge, ShrinkPlan, full_name


def apply(net: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Shrink `net` in place and return it."""
    with torch.no_grad():
        for fold in (*plan.folds, *plan.scales):
            _add(*_find(net, fold.name), fold.amount)
        for merge in plan.merges:
            _merge(*_find(net, merge.name), merge)
        made: dict[int, nn.Parameter] = {}
        for name in dict.fromkeys(cut.name for cut in plan.cuts):
            module, leaf = _find(net, name)
            _replace(module, leaf, plan, name, made)
            resize(module, plan.groups.get(name.rpartition(".")[0]))
        for path in {cut.name.rpartition(".")[0] for cut in plan.cuts}:
            module = net.get_submodule(path)
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        for name, size in plan.sizes.items():
            net.get_submodule(name).num_features = size  # type: ignore[assignment]
        write_sizes(net, {**plan.attributes, **{full_name(name, "groups"): n for name, n in plan.groups.items()}})
        write_numbers(net, plan.numbers)
        for name, size in plan.padded.items():
            norm = net.get_submodule(name)
            assert isinstance(norm, nn.LayerNorm)
            pad(norm, size)
            write_sizes(net, {full_name(name, "padded_to"): size})
        for name, reads in plan.selects.items():
            _select(net.get_submodule(name), reads)
    return net


def resize(module: nn.Module, groups: int | None = None) -> None:
    """Set the size attributes of a layer to what its tensors say; groups: how many it has, where they are of another size."""
    if gates_of(module):
        resize_recurrent(module)
    kind = kind_of(module)
    if kind is not None:
        kind.resize(module, groups)


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


def _replace(module: nn.Module, leaf: str, plan: ShrinkPlan, name: str, made: dict[int, nn.Parameter]) -> None:
    """made: what parameters have become, by their id, so that tied ones stay tied."""
    old = getattr(module, leaf)
    if id(old) in made:
        setattr(module, leaf, made[id(old)])
        return
    new = plan.cut(name, old.detach())
    if not isinstance(old, nn.Parameter):
        setattr(module, leaf, new)
        module._non_persistent_buffers_set.discard(leaf)  # its class would make it of another size
        return
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)
    if old.grad is not None:
        parameter.grad = plan.cut(name, old.grad)
    setattr(module, leaf, parameter)
    made[id(old)] = parameter


def _select(module: nn.Module, reads: Tensor) -> None:
    if isinstance(module, SelectLinear):
        module.reads = module.reads[reads.to(module.reads.device)]
        return
    assert isinstance(module, nn.Linear)
    module.__class__ = SelectLinear
    module.register_buffer("reads", reads.to(module.weight.device))
