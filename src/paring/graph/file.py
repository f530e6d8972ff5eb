"""One file per network, without pickle: safetensors plus a JSON manifest in its metadata.

The manifest (key `paring` of the safetensors metadata) holds, for a network whose class is built by the user's own code
(format version 1):

* `tensors`: name -> [dtype, shape] of every tensor in the file;
* `ties`: other names of the same tensor -> the name it is stored under;
* `modules`: path -> class name of every stock layer with sizes, so that `load` can resize (and swap) them, and of every
  `Identity`, which may stand for a norm that was fused;
* `units`: path -> `saved_as` of every module that has this attribute: a name in `UNITS` and numbers, from which the module
  can be made. So `load` gives the network the activations it was saved with. Left out when there are none;
* `digest`: SHA-256 over the rest of the manifest and all tensor bytes.

A network in graph form (format version 2) has in addition `graph`: which units stay, and the shapes and types of the
example. `load` captures the factory's network on such an example and writes the same sizes into its graph.

Writing goes to a temporary file that is synced and renamed, so a crash never leaves half a file under the name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paring.core import plain_net, unwrapped
from paring.core.atomic import atomic
from paring.graph.apply import resize
from paring.graph.graph_file import FileError, captures_of, graph_of, written
from paring.graph.graph_net import GraphNet
from paring.graph.select import SelectLinear
from paring.graph.still import still

VERSION, GRAPH_VERSION = 1, 2
KEY = "paring"
UNITS: dict[str, Callable[..., nn.Module]] = {}  # how units are made again from what their `saved_as` says
_SIZED: dict[str, type[nn.Module]] = {
    c.__name__: c
    for c in (
        nn.Linear,
        nn.modules.linear.NonDynamicallyQuantizableLinear,
        SelectLinear,
        nn.Embedding,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.GroupNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.PReLU,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.Identity,
    )
}


def save(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write parameters and persistent buffers of `net` to `path` (safetensors). Tied tensors are written once.

    Raises `FileError` when the state holds anything but tensors.
    """
    net = plain_net(net, "save", FileError)
    state, manifest = described(net)
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    manifest["tensors"] = {n: [_dtype(v), list(v.shape)] for n, v in tensors.items()}
    manifest["digest"] = _digest(manifest, tensors)
    with atomic(path) as file:
        file.write(safetensors.torch.save(tensors, {KEY: json.dumps(manifest)}))


def described(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a network, tied tensors once, and its manifest without `tensors` and `digest`.

    Raises `FileError` when the state holds anything but tensors.
    """
    state: dict[str, Tensor] = net.state_dict()
    odd = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if odd:
        raise FileError(
            f"{_some(odd)} in the state of {type(net).__name__} is no tensor; keep such state out of the file."
        )
    empty = [name for name, value in state.items() if is_lazy(value)]
    if empty:
        raise FileError(f"{_some(empty)} in {type(net).__name__} has no shape yet; run the network on an input first.")
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name, value in state.items():
        place = (value.untyped_storage().data_ptr(), value.storage_offset())
        key = (*place, tuple(value.shape), value.stride(), value.dtype)
        owner = first.setdefault(key if value.numel() else name, name)
        if owner != name:
            ties[name] = owner
    manifest: dict[str, Any] = {
        "version": VERSION,
        "ties": ties,
        "modules": {path: type(m).__name__ for path, m in net.named_modules() if type(m) in _SIZED.values()},
    }
    if units := _units(net):
        manifest["units"] = units
    if isinstance(net, GraphNet):
        manifest |= {"version": GRAPH_VERSION, "graph": _recipe(net)}
    return {name: value for name, value in state.items() if name not in ties}, manifest


def load(factory: Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """The network of `factory()` (same architecture, any widths) with the sizes and tensors of the file, on the CPU.

    Raises `FileError` for a missing, damaged or foreign file and for a factory of another architecture.
    """
    return rebuilt(factory, *_read(Path(path)), path)


def rebuilt(
    factory: Callable[[], nn.Module], manifest: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
) -> nn.Module:
    """The network of `factory()` with the sizes of a manifest and these tensors, read from `path` (for messages).

    Raises `FileError` for a factory of another architecture.
    """
    with torch.device("cpu"):
        net = unwrapped(factory())
    with still(net):
        return _rebuilt(net, manifest, tensors, path)


def _rebuilt(
    net: nn.Module, manifest: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
) -> nn.Module:
    _swap_units(net, manifest, path)
    _unnormed(net, manifest["modules"])
    captures = captures_of(net, manifest, path) if "graph" in manifest else None
    ties: dict[str, str] = manifest["ties"]
    stored = {**tensors, **{alias: tensors[name] for alias, name in ties.items()}}
    _swap(net, manifest["modules"], path)
    own = net.state_dict(keep_vars=True)
    flexible = _flexible(net, manifest["modules"])
    missing = sorted(own.keys() - stored.keys() - flexible)
    extra = sorted(stored.keys() - own.keys() - flexible)
    if missing or extra:
        raise FileError(
            f"{path} holds another architecture than {type(net).__name__}: "
            f"not in the file: {_some(missing)}; only in the file: {_some(extra)}. Pass the factory it was saved from."
        )
    _check_ties(own, ties, path)
    for name, value in own.items():
        if captures is None and name in stored and name not in flexible and value.shape != stored[name].shape:
            raise FileError(
                f"{path}: {name} has shape {tuple(stored[name].shape)} in the file and {tuple(value.shape)} in "
                f"{type(net).__name__}, which no layer explains. Pass the factory it was saved from."
            )
    _fill(net, own, stored, ties)
    return net if captures is None else graph_of(net, captures, manifest["graph"], path)


def _recipe(net: GraphNet) -> dict[str, Any]:
    if net.recipe is None:
        raise FileError(
            f"{type(net).__name__} was compacted again after it had become a graph, so that no factory leads to it. "
            "Compact the network it came from once, and save that."
        )
    return written(net.recipe)


def _units(net: nn.Module) -> dict[str, list[Any]]:
    """What modules say of how they are made again."""
    found = {name: getattr(module, "saved_as", None) for name, module in net.named_modules(remove_duplicate=False)}
    return {name: list(told) for name, told in found.items() if isinstance(told, tuple)}


def _swap_units(net: nn.Module, manifest: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Give the network the units of the file, where the factory has others."""
    if "graph" in manifest and "units" not in manifest:  # a graph's units are no modules any more
        return
    saved, own = manifest.get("units", {}), _units(net)
    if not isinstance(saved, dict) or not all(_makes_sense(spec) for spec in saved.values()):
        raise FileError(f"{path} is damaged: its units make no sense. Save it again, or fetch it again.")
    there = dict(net.named_modules(remove_duplicate=False))
    if odd := [name for name in own if name not in saved]:
        raise FileError(
            f"{path} holds another function: '{odd[0]}' is a {' '.join(map(str, own[odd[0]]))} in the factory, and the file knows "
            "of no such unit there. Pass the factory it was saved from."
        )
    made: dict[int, nn.Module] = {}
    for name, (kind, *numbers) in saved.items():
        old = there.get(name)
        if own.get(name) == [kind, *numbers]:
            continue
        if old is None or not name or kind not in UNITS:
            raise FileError(
                f"{path} holds another architecture: '{name}' is a {kind} in the file, the factory has "
                f"{'nothing' if old is None else type(old).__name__} there. Pass the factory it was saved from."
            )
        if id(old) not in made:
            made[id(old)] = UNITS[kind](*numbers).train(old.training)
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, made[id(old)])


def _makes_sense(spec: Any) -> bool:
    """Whether this is a name and positive numbers."""
    return (
        isinstance(spec, list)
        and len(spec) > 0
        and type(spec[0]) is str
        and all(type(n) is int and n > 0 for n in spec[1:])
    )


def _unnormed(net: nn.Module, modules: dict[str, str]) -> None:
    """Norms that were fused before the network was saved go."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and modules.get(name) == "Identity":
            path, _, leaf = name.rpartition(".")
            net.get_submodule(path)._modules[leaf] = nn.Identity().train(module.training)


def _swap(net: nn.Module, modules: dict[str, str], path: str | os.PathLike[str]) -> None:
    """Give layers the class they have in the file."""
    there = dict(net.named_modules())
    for name, kind in modules.items():
        module = there.get(name)
        if module is not None and type(module) is nn.Linear and kind == "SelectLinear":
            module.__class__ = SelectLinear
            module.register_buffer("reads", torch.arange(module.in_features))
        if module is None or type(module).__name__ != kind:
            found = "nothing" if module is None else type(module).__name__
            raise FileError(
                f"{path} holds another architecture: '{name}' is a {kind} in the file, the factory has {found} there. "
                "Pass the factory it was saved from."
            )


def _flexible(net: nn.Module, modules: dict[str, str]) -> set[str]:
    """Names of tensors that may have another size in the file, or be absent on one side (biases)."""
    names: set[str] = set()
    for path in modules:
        module = net.get_submodule(path)
        prefix = f"{path}." if path else ""
        names.update(prefix + leaf for leaf in [*module._parameters, *module._buffers])
    return names


def _check_ties(own: dict[str, Any], ties: dict[str, str], path: str | os.PathLike[str]) -> None:
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
            frozen = old is not None and not old.requires_grad
            made.setdefault(
                owner, nn.Parameter(stored[name], requires_grad=not frozen and stored[name].is_floating_point())
            )
            module.register_parameter(leaf, made[owner])
    for module in net.modules():
        resize(module)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    try:
        tensors = safetensors.torch.load(data)
        manifest = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KEY])
        version = manifest["version"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise FileError(
            f"{path} is not a file that paring.save wrote, or it is damaged or cut off ({len(data)} bytes): "
            f"{type(error).__name__}: {error}. Save it again, or fetch it again."
        ) from error
    if version not in (VERSION, GRAPH_VERSION):
        raise FileError(
            f"{path} has format version {version}, this paring reads {VERSION} and {GRAPH_VERSION}. "
            "Use a matching paring."
        )
    expected = manifest.pop("digest", None)
    if expected != _digest(manifest, tensors):
        raise FileError(f"{path} is damaged: its content does not match its digest. Save it again, or fetch it again.")
    return manifest, tensors


def _digest(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {_dtype(value)} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
