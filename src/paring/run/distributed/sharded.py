"""Networks whose parameters are sharded over processes (FSDP2's `fully_shard`): whole while gates are asked, and to finish.

Sharded parameters are `DTensor`s, whose operations do not mix with plain tensors. Inside the forward pass FSDP gathers
what it needs; everything that looks at gates outside of it does so within `whole`. All of this is collective: every
process has to come along.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.core import gates, is_sharded
from paring.core.sharding import shard_class, sharded_modules, sharded_places

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
_Place = tuple[nn.Module, str, "DTensor"]


_ORDER = "First paring.attach, then fully_shard, then the optimizer (with run.parameter_groups)"


def refuse_sharded(net: nn.Module, what: str, instead: str = _ORDER) -> None:
    """Refuse what has to come before `fully_shard`, or does not go with it, and say what to do instead.

    Raises:
        ValueError: the network is sharded already.
    """
    if is_sharded(net):
        raise ValueError(
            f"{what} needs the whole network, but this {type(net).__name__} is sharded over processes already. {instead}"
        )


@contextmanager
def whole(net: nn.Module, *, weights: bool = True, write: bool = False) -> Iterator[None]:
    """Within this context the gates of a sharded network are plain tensors of full size; other networks are left alone.

    Args:
        net: the network; its `fully_shard` modules are resharded first.
        weights: all other parameters as well.
        write: bring what changes in them back into the shards, by the values of the first process; otherwise gradients
            flow back into the shards.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (together and is_sharded(net)):  # the first is cheap, and this is asked in every step
        yield
        return
    _reshard(net)
    chosen = net.modules() if weights else (m for _, _, gate in gates(net) for m in gate.modules())
    places = list(sharded_places(dict.fromkeys(chosen)))
    made = {id(held): _plain(held, detach=write) for _, _, held in places}
    before = {key: full.detach().clone() for key, full in made.items()} if write else {}
    with _shown(places, made):
        yield
    with torch.no_grad():
        for held in {id(held): held for _, _, held in places if write}.values():
            if not torch.equal(made[id(held)].detach(), before[id(held)]):
                _store(held, made[id(held)].detach())


def gathered(net: nn.Module) -> nn.Module:
    """A plain copy of a sharded network, the same in every process: full parameters, its own classes, no hooks of FSDP.

    What is not sharded (buffers, ignored parameters) is that of the first process.
    """
    _reshard(net)
    places = list(sharded_places(net.modules()))
    made = {id(held): _plain(held, detach=True) for _, _, held in places}
    with ExitStack() as stack:
        stack.enter_context(_shown(places, made))
        for module in net.modules():
            stack.enter_context(_bare(module))
        small = copy.deepcopy(net, {id(full): full for full in made.values()})
    done = {id(full) for full in made.values()}
    others = [p for p in small.parameters() if id(p) not in done]
    with torch.no_grad():
        for tensor in (*others, *small.buffers()) if places else ():
            tensor.copy_(_from_first(places[0][2].device_mesh, tensor.detach().contiguous()))
    return small


def alike(net: nn.Module, value: T) -> T:
    """A tensor, or a tree of them, of the first of the processes that share `net`; each leaf on the device it has here."""
    _reshard(net)
    held = next(sharded_places(net.modules()), None)
    if held is None:
        return value
    leaves, spec = pytree.tree_flatten(value)
    box = [[leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in leaves]]
    for group in held[2].device_mesh.get_all_groups():
        torch.distributed.broadcast_object_list(box, src=torch.distributed.get_global_rank(group, 0), group=group)
    there = [b.to(a.device) if isinstance(a, Tensor) else b for a, b in zip(leaves, box[0], strict=True)]
    found: T = pytree.tree_unflatten(there, spec)
    return found


def _reshard(net: nn.Module) -> None:
    """After a forward pass without a backward pass some modules still hold their gathered parameters."""
    for module in sharded_modules(net.modules()):
        module.reshard()


@contextmanager
def _shown(places: list[_Place], made: dict[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the places of parameters."""
    try:
        for module, leaf, held in places:
            module._parameters[leaf] = made[id(held)]  # type: ignore[assignment]
        yield
    finally:
        for module, leaf, held in places:
            module._parameters[leaf] = held  # type: ignore[assignment]


def _plain(held: DTensor, *, detach: bool) -> Tensor:
    """All of a sharded parameter: a parameter of its own, or connected to the shards by autograd."""
    there: Any = held.to(held.device_mesh.device_type)  # offloaded shards
    full: Tensor = there.detach().full_tensor() if detach else there.full_tensor()
    return nn.Parameter(full.clone(), requires_grad=held.requires_grad) if detach else full


def _store(held: DTensor, full: Tensor) -> None:
    from torch.distributed.tensor import distribute_tensor

    held.copy_(distribute_tensor(full, held.device_mesh, held.placements))


def _from_first(mesh: DeviceMesh, tensor: Tensor) -> Tensor:
    here = tensor.device
    tensor = tensor.to(mesh.device_type)
    for group in mesh.get_all_groups():
        torch.distributed.broadcast(tensor, src=torch.distributed.get_global_rank(group, 0), group=group)
    return tensor.to(here)


@contextmanager
def _bare(module: nn.Module) -> Iterator[None]:
    """Within this context a module has its own class, and neither hooks nor notes of torch.distributed, so it can be copied."""
    kind, own = type(module), vars(module)
    order, wrapper = kind.__mro__, shard_class("FSDPModule")
    notes = {name: note for name, note in own.items() if name.startswith(("__composable_api", "_is_fsdp_", "_fsdp_"))}
    hooks = {name: all_ for name, all_ in own.items() if name.endswith("_hooks") and isinstance(all_, dict)}
    try:
        if wrapper in order:
            module.__class__ = order[order.index(wrapper) + 1]
        for name in notes:
            del own[name]
        for name, all_ in hooks.items():
            own[name] = type(all_)((key, hook) for key, hook in all_.items() if not _foreign(hook))
        yield
    finally:
        module.__class__ = kind
        own.update(notes | hooks)


def _foreign(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
