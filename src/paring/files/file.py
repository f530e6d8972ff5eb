"""One file per network, without pickle: safetensors plus a JSON manifest in its metadata.

The manifest (key `paring` of the safetensors metadata) holds, for a network whose class is built by the user's own code
(format version 1):

* `tensors`: name -> [dtype, shape] of every tensor in the file;
* `ties`: other names of the same tensor -> the name it is stored under;
* `modules`: path -> class name of every stock layer with sizes, so that `load` can resize (and swap) them, and of every
  `Identity`, which may stand for a norm that was fused;
* `units`: path -> `saved_as` of every module that has this attribute: a name in `UNITS` and numbers, from which the module
  can be made. So `load` gives the network the activations it was saved with. Left out when there are none;
* `sizes`: path of an attribute -> number, for those that modules of the user's own keep and that changed when the network
  became smaller. Left out when there are none;
* `numbers`: the same for floating-point numbers, such as the ε of an RMSNorm. Left out when there are none;
* `digest`: SHA-256 over the rest of the manifest and all tensor bytes.

A network in graph form (format version 4) has in addition `graph`: `gone`, how many units everything had and which are gone,
`example`, the arguments' shapes and types (`paring.core.nested`): at most 16 MiB, or as many bytes as the tensors take, and `free`, which
of these sizes are free beside the batch. `load` captures the factory's network on zeros of these shapes and writes the same
sizes into its graph.

Nothing that is read is imported, called or evaluated; `paring.files.manifest` checks all of it before any of it is used.

Writing goes to a temporary file that is synced and renamed, so a crash never leaves half a file under the name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paring.core import STATE_KEY, bare_state, plain_net
from paring.core.atomic import atomic
from paring.core.file_error import FileError
from paring.core.plain_json import MANY, parsed, size
from paring.core.quantised import in_floats
from paring.core.regular import open_regular
from paring.core.unwrap import seen_through
from paring.core.written_sizes import written_numbers, written_sizes
from paring.files.graph_file import written
from paring.files.manifest import GRAPH_VERSION, VERSION, checked, layer_name
from paring.files.rebuild import Source, rebuilt, some, units_of
from paring.removal.graph_net import GraphNet

KEY = "paring"
_UNREADABLE = (
    safetensors.SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
    RuntimeError,
)


def save(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write parameters and persistent buffers of `net` to `path` (safetensors). Tied tensors are written once.

    Raises `FileError` when the state holds anything but tensors.
    """
    net = in_floats(plain_net(net, "save", FileError), "save", FileError)
    with seen_through(net):
        state, manifest = described(net)
    if odd := unwritable(state):
        raise FileError(odd)
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    manifest["tensors"] = {n: [_dtype(v), list(v.shape)] for n, v in tensors.items()}
    manifest["digest"], _ = _digest(manifest, tensors)
    text = json.dumps(manifest)
    if size(text) > MANY:
        raise FileError(f"{type(net).__name__} takes a manifest of {size(text):,} values, and readers accept {MANY:,}")
    with atomic(path) as file:
        file.write(safetensors.torch.save(tensors, {KEY: text}))


def described(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a network, tied tensors once, and its manifest without `tensors` and `digest`.

    Raises `FileError` when the state holds anything but tensors.
    """
    state = bare_state(net)
    odd = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if odd:
        raise FileError(
            f"{some(odd)} in the state of {type(net).__name__} is no tensor; keep such state out of the file."
        )
    empty = [name for name, value in state.items() if is_lazy(value)]
    if empty:
        raise FileError(f"{some(empty)} in {type(net).__name__} has no shape yet; run the network on an input first.")
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
        "modules": {path: name for path, m in net.named_modules() if (name := layer_name(m))},
    }
    if units := units_of(net):
        manifest["units"] = units
    if sizes := written_sizes(net):
        manifest["sizes"] = sizes
    if numbers := written_numbers(net):
        manifest["numbers"] = numbers
    held = {name: value for name, value in state.items() if name not in ties}
    if isinstance(net, GraphNet):
        whole = sum(value.numel() * value.element_size() for value in held.values())
        manifest |= {"version": GRAPH_VERSION, "graph": _recipe(net, whole)}
    return held, manifest


def load(net: Source, path: str | os.PathLike[str]) -> nn.Module:
    """A network of this architecture with the sizes and tensors of the file.

    net: a network of any widths, which is copied and left as it is, or a function without arguments that makes one.

    What comes back is on the CPU and in eval mode, as `run.finish()` gives it. Nothing in the file is imported, called or
    evaluated.

    Raises `FileError` for a missing, damaged or foreign file and for a network of another architecture or with gates in it,
    `TypeError` for anything else in the network's place.
    """
    return rebuilt(net, *_read(Path(path)), path)


def _recipe(net: GraphNet, tensor_bytes: int) -> dict[str, Any]:
    if net.recipe is None:
        raise FileError(
            f"{type(net).__name__} was compacted again after it had become a graph, so that no factory leads to it. "
            "Compact the network it came from once, and save that."
        )
    return written(net.recipe, tensor_bytes)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    try:
        tensors = safetensors.torch.load(data)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    _refuse_state(path, tensors)
    try:
        told = parsed(data[8 : 8 + int.from_bytes(data[:8], "little")], MANY).get("__metadata__") or {}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if (text := told.get(KEY)) is None:
        raise FileError(
            f"{path} holds tensors, but not what paring.save writes beside them: another program wrote it, or it is damaged. "
            "For another program's file: net.load_state_dict(safetensors.torch.load_file(path))."
        )
    return manifest_of(text, tensors, path), tensors


def _refuse_state(path: Path, names: Iterable[str]) -> None:
    if any(name.rpartition(".")[2] == STATE_KEY for name in names):
        raise FileError(
            f"{path} holds the state dict of a network that trains with a method, gates included. To go on training, build the "
            "network, call paring.attach(net, method, example), then net.load_state_dict(safetensors.torch.load_file(path)). For the "
            "small network, save what run.finish() returns."
        )


def manifest_of(text: str, tensors: Mapping[str, Tensor], path: object) -> dict[str, Any]:
    """The manifest of a file, checked: its text, and the tensors that are there.

    tensors: asked for one after the other, so they may be loaded when asked for. Raises `FileError`.
    """
    try:
        manifest = parsed(text, MANY)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    told = manifest.pop("digest", None) if isinstance(manifest, dict) else None
    digest, held = _digest(manifest, tensors)
    if told != digest:
        raise FileError(f"{path} is damaged: its content does not match its digest. Save it again, or fetch it again.")
    return checked(manifest, held, path)


def _unreadable(path: object, error: Exception) -> FileError:
    return FileError(
        f"{path} is not a file that paring.save wrote, or it is damaged or cut off: "
        f"{type(error).__name__}: {error}. Save it again, or fetch it again."
    )


def unwritable(names: Iterable[str]) -> str:
    """What is wrong with names that a safetensors file cannot hold; nothing if it can."""
    for name in names:
        if name == "__metadata__" or (not name.isascii() and name.encode("utf-8", "replace").decode() != name):
            return f"a .safetensors file cannot hold a tensor of the name {name!r}; give it another one, or write a .pare file"
    return ""


def _digest(manifest: object, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """SHA-256 over a manifest and tensors, and the type and sizes of each."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    held: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in sorted(tensors):
        value = tensors[name]
        held[name] = (_dtype(value), tuple(value.shape))
        digest.update(f"{name} {_dtype(value)} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest(), held


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
