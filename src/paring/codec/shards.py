"""Tensors in safetensors files on disk, loaded when asked for; and the way back, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from paring.codec.container import Entry
from paring.codec.error import PareError
from paring.core.atomic import atomic
from paring.graph.file import KEY

_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Shards(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files; each is read when it is asked for, and not kept.

    Args:
        paths: the files.

    Attributes:
        manifest: of a file that `pr.save` wrote, without its list of tensors and its digest; None for other files.

    Raises:
        PareError: a file cannot be read, or two hold a tensor of the same name.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._where: dict[str, Path] = {}
        self.manifest: dict[str, Any] | None = None
        for path in map(Path, paths):
            names, metadata = _opened(path)
            for name in names:
                if name in self._where:
                    raise PareError(f"both {self._where[name]} and {path} hold {name!r}; name the files of one model")
                self._where[name] = path
            if KEY in metadata and len(paths) == 1:
                told = _manifest(path, metadata[KEY])
                self.manifest = {key: value for key, value in told.items() if key not in ("tensors", "digest")}

    def __getitem__(self, name: str) -> Tensor:
        with safetensors.safe_open(self._where[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def save_stream(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    manifest: dict[str, Any],
) -> None:
    """Write a safetensors file tensor by tensor, as `pr.save` would write it when the manifest describes a network.

    Args:
        path: where to.
        entries: what is coming, in its order.
        tensors: (name, tensor).
        manifest: of the network; its `tensors` and `digest` are filled in.
    """
    header: dict[str, Any] = {}
    at = 0
    widest = sorted(
        entries, key=lambda entry: -_width(entry)
    )  # the format asks for no gaps, and alignment helps readers
    order = {entry.name: index for index, entry in enumerate(widest)}
    for entry in widest:
        size = entry.count * _width(entry)
        header[entry.name] = {"dtype": _TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [at, at + size]}
        at += size
    told = manifest | {
        "tensors": {e.name: [e.dtype, list(e.shape)] for e in sorted(entries, key=lambda e: order[e.name])}
    }
    text = _text(header, told | {"digest": "0" * 64})
    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(memoryview(_raw(tensor)))
        file.seek(8 + len(text) + at)
        file.truncate()
        file.flush()
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        with safetensors.safe_open(file.name, framework="pt") as written:
            for name in sorted(header):
                value = written.get_tensor(name)
                digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}".encode())
                digest.update(memoryview(_raw(value)))
        file.seek(8)
        file.write(_text(header, told | {"digest": digest.hexdigest()}))


def _opened(path: Path) -> tuple[list[str], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise PareError(f"{path} is no readable safetensors file: {error}. Check the path.") from error


def _manifest(path: Path, text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not all(isinstance(told.get(key, {}), dict) for key in ("ties", "modules")):
        raise PareError(f"{path} is damaged: what it says of its network ({text[:40]!r}) cannot be read. Save it again")
    return told


def _width(entry: Entry) -> int:
    return int(getattr(torch, entry.dtype).itemsize)


def _text(header: dict[str, Any], manifest: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": {KEY: json.dumps(manifest)}, **header}).encode()
    return text + b" " * (-len(text) % 8)


def _raw(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
