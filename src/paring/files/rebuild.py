"""From a checked manifest and tensors to the network: the factory's, with the sizes and tensors of the file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paring.core import plain_net, unwrapped
from paring.core.file_error import FileError
from paring.core.fused_encoder import part_of_fused
from paring.core.padded_layer_norm import PaddedLayerNorm, pad
from paring.core.select_linear import SelectLinear
from paring.core.unwrap import seen_through
from paring.core.written_sizes import write_numbers, write_sizes
from paring.core.zeros import Zeros
from paring.files.fits import misfit
from paring.files.graph_file import captures_of, graph_of
from paring.files.manifest import layer_name
from paring.removal.apply import resize

UNITS: dict[str, Callable[..., nn.Module]] = {
    "zeros": Zeros
}  # how units are made again from what their `saved_as` says
_PASS = "Pass the factory it was saved from."


Source = nn.Module | Callable[[], nn.Module]


def rebuilt(source: Source, manifest: dict[str, Any], tensors: dict[str, Tensor], path: object) -> nn.Module:
    """The network of the source with the sizes of a manifest and these tensors, on the CPU, in eval mode.

    Args:
        source: a network of the architecture, of any widths, which is copied and left as it is, or what makes one.
        manifest: as `checked` gave it.
        tensors: those that the file holds.
        path: that it was read from, for messages.

    Raises:
        FileError: a network of another architecture, or one with gates in it.
        TypeError: no network and nothing that makes one.
    """
    if isinstance(source, nn.Module):
        net = copy.deepcopy(plain_net(source, "load", FileError)).cpu()
    elif callable(source):
        with torch.device("cpu"):
            net = source()
        if not isinstance(net, nn.Module):
            raise TypeError(f"the factory gave a {type(net).__name__} and no nn.Module; let it return the network")
    else:
        raise TypeError(
            f"the network of {path} is needed, or a function that makes it, not a {type(source).__name__}: the network comes "
            "first, then the file"
        )
    net = unwrapped(net).eval()
    with seen_through(net):
        return _rebuilt(net, manifest, tensors, path)


def _rebuilt(net: nn.Module, manifest: dict[str, Any], tensors: dict[str, Tensor], path: object) -> nn.Module:
    modules: dict[str, str] = manifest["modules"]
    ties: dict[str, str] = manifest["ties"]
    _swap_units(net, manifest, path)
    _unnormed(net, modules)
    captures = captures_of(net, manifest["graph"], tensors, path) if "graph" in manifest else None
    stored = {**tensors, **{alias: tensors[name] for alias, name in ties.items()}}
    reads = _swap(net, modules, path)
    _keep_cut_buffers(net, stored.keys())
    own: dict[str, Any] = net.state_dict(keep_vars=True)
    flexible = _flexible(net, modules)
    missing = sorted(name for name in own.keys() - stored.keys() if name not in flexible or not _is_bias(name))
    extra = sorted(name for name in stored.keys() - own.keys() if name not in flexible or not _is_bias(name))
    if missing or extra:
        raise FileError(
            f"{path} holds another architecture than {type(net).__name__}: "
            f"not in the file: {some(missing)}; only in the file: {some(extra)}. {_PASS}"
        )
    _check_ties(own, ties, path)
    for name in own.keys() & stored.keys():
        _check_shape(
            name,
            own[name],
            stored[name],
            captures is not None or name in flexible or _shorter(own[name], stored[name]),
            path,
            type(net).__name__,
        )
    _fill(net, own, stored, ties)
    for name in modules:
        module = net.get_submodule(name)
        groups = manifest.get("sizes", {}).get(f"{name}.groups")
        if problem := misfit(module, reads.get(name), groups):
            raise FileError(f"{path} is damaged: '{name}', a {type(module).__name__}, {problem}. Save it again.")
        resize(module, groups)
    try:
        write_sizes(net, manifest.get("sizes", {}))
        write_numbers(net, manifest.get("numbers", {}))
    except KeyError as error:
        raise FileError(
            f"{path} holds another architecture: it has a number {error.args[0]}, and {type(net).__name__} has none there. {_PASS}"
        ) from error
    for name in modules:
        norm = net.get_submodule(name)
        if isinstance(norm, PaddedLayerNorm) and norm.padded_to < norm.normalized_shape[0]:
            raise FileError(f"{path} is damaged: '{name}' has more features than all together. Save it again.")
    return net if captures is None else graph_of(net, captures, manifest["graph"], path)


def units_of(net: nn.Module) -> dict[str, list[Any]]:
    """What modules say of how they are made again."""
    found = {name: getattr(module, "saved_as", None) for name, module in net.named_modules(remove_duplicate=False)}
    return {name: list(told) for name, told in found.items() if isinstance(told, tuple)}


def _swap_units(net: nn.Module, manifest: dict[str, Any], path: object) -> None:
    """Give the network the units of the file, where the factory has others."""
    if "graph" in manifest and "units" not in manifest:  # a graph's units are no modules any more
        return
    saved, own = manifest.get("units", {}), units_of(net)
    there = dict(net.named_modules(remove_duplicate=False))
    if odd := [name for name in own if name not in saved]:
        raise FileError(
            f"{path} holds another function: '{odd[0]}' is a {' '.join(map(str, own[odd[0]]))} in the factory, and the file knows "
            f"of no such unit there. {_PASS}"
        )
    made: dict[int, nn.Module] = {}
    for name, spec in saved.items():
        old = there.get(name)
        if own.get(name) == spec:
            continue
        new = None if old is None or not name else made.get(id(old), _unit(*spec))
        if new is None or old is None:
            raise FileError(
                f"{path} holds another architecture: '{name}' is a {' '.join(map(str, spec))} in the file, the factory has "
                f"{'nothing' if old is None else type(old).__name__} there. {_PASS}"
            )
        made[id(old)] = new.train(old.training)
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, new)
        part_of_fused(net.get_submodule(parent))


def _unit(kind: str, *numbers: int) -> nn.Module | None:
    """A unit of this kind; None if there is none."""
    try:
        made = UNITS[kind](*numbers)
    except (KeyError, TypeError, ValueError):
        return None
    return made if getattr(made, "saved_as", None) == (kind, *numbers) else None


def _unnormed(net: nn.Module, modules: dict[str, str]) -> None:
    """Norms that were fused before the network was saved go."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and modules.get(name) == "Identity" and name:
            path, _, leaf = name.rpartition(".")
            net.get_submodule(path)._modules[leaf] = nn.Identity().train(module.training)


def _swap(net: nn.Module, modules: dict[str, str], path: object) -> dict[str, int]:
    """Give layers the class they have in the file. Returns how many inputs those have that read some of them."""
    there = dict(net.named_modules())
    reads: dict[str, int] = {}
    for name, kind in modules.items():
        module = there.get(name)
        if module is not None and type(module) is nn.Linear and kind == "SelectLinear" and not hasattr(module, "reads"):
            reads[name] = module.in_features
            module.__class__ = SelectLinear
            module.register_buffer("reads", torch.arange(module.in_features))
        if isinstance(module, nn.LayerNorm) and not isinstance(module, PaddedLayerNorm) and kind == "PaddedLayerNorm":
            pad(module, module.normalized_shape[0])
        if module is None or layer_name(module) != kind:
            found = "nothing" if module is None else type(module).__name__
            raise FileError(
                f"{path} holds another architecture: '{name}' is a {kind} in the file, the factory has {found} there. {_PASS}"
            )
    return reads


def _keep_cut_buffers(net: nn.Module, stored: Collection[str]) -> None:
    """Make buffers that a network makes itself persistent where the file has them, as slices of theirs are gone."""
    for path, module in net.named_modules():
        held = {leaf for leaf in module._non_persistent_buffers_set if f"{path}.{leaf}".lstrip(".") in stored}
        module._non_persistent_buffers_set -= held


def _flexible(net: nn.Module, modules: dict[str, str]) -> set[str]:
    """Names of tensors that may have another size in the file, or be absent on one side (biases)."""
    names: set[str] = set()
    for path in modules:
        module = net.get_submodule(path)
        prefix = f"{path}." if path else ""
        names.update(prefix + leaf for leaf in [*module._parameters, *module._buffers])
    return names


def _shorter(own: object, new: Tensor) -> bool:
    """Whether a tensor outside of layers may have lost slices, as layer scale does with its channels, and plain weights with units."""
    if not isinstance(own, Tensor) or is_lazy(own) or own.dim() != new.dim():
        return False
    return own.shape != new.shape and all(0 < b <= a for a, b in zip(own.shape, new.shape, strict=True))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _check_shape(name: str, own: object, new: Tensor, flexible: bool, path: object, net: str) -> None:
    """Refuse a tensor that no removal of units leads to."""
    if not isinstance(own, Tensor) or is_lazy(own):
        raise FileError(
            f"{name} of the factory's {net} is no tensor of a known shape; run the network once in the factory"
        )
    if (own.dim() == new.dim()) if flexible else (own.shape == new.shape):
        if own.is_floating_point() == new.is_floating_point() and own.is_complex() == new.is_complex():
            return
        raise FileError(f"{path}: {name} is {new.dtype} in the file and {own.dtype} in {net}. {_PASS}")
    raise FileError(
        f"{path}: {name} has shape {tuple(new.shape)} in the file and {tuple(own.shape)} in {net}, which no layer explains. {_PASS}"
    )


def _check_ties(own: dict[str, Any], ties: dict[str, str], path: object) -> None:
    groups: dict[int, str] = {}
    for name, value in own.items():
        owner = groups.setdefault(id(value), name)
        if owner != name and ties.get(name, name) != ties.get(owner, owner):
            raise FileError(
                f"{path}: the factory ties {name} to {owner}, but the file holds two different tensors. "
                "Untie them in the factory, or tie them before saving."
            )


def _fill(net: nn.Module, own: dict[str, Any], stored: dict[str, Tensor], ties: dict[str, str]) -> None:
    made: dict[str, nn.Parameter] = {}
    for name in [*own.keys(), *sorted(stored.keys() - own.keys())]:
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        if name not in stored:  # a bias that the file does not have
            module.register_parameter(leaf, None)
        elif leaf in module._buffers:
            module._buffers[leaf] = stored[name]
        else:
            owner, old = ties.get(name, name), own.get(name)
            learns = stored[name].is_floating_point() or stored[name].is_complex()
            frozen = old is not None and not old.requires_grad
            made.setdefault(owner, nn.Parameter(stored[name], requires_grad=not frozen and learns))
            module.register_parameter(leaf, made[owner])


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
