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

from paring.core.atomic import atomic
from paring.core.file_error import FileError
from paring.core.regular import open_regular
from paring.files.file import KEY, manifest_of, unwritable
from paring.files.pare.container import Entry
from paring.files.pare.error import PareError

CODES = {
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
"""The names of types in safetensors files."""


class Shards(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files; each is read when it is asked for, and not kept.

    Args:
        paths: the files.

    Attributes:
        manifest: of a file that `pr.save` wrote, checked against its digest, without this and its list of tensors; None for
            other files.

    Raises:
        PareError: a file cannot be read, is damaged, or two hold a tensor of the same name.
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
            if KEY not in metadata and any(map(_is_manifest, metadata.values())):
                raise PareError(
                    f"{path} is damaged: what `pr.save` writes about a network is there, but not under its name. Save it again, or "
                    "fetch it again."
                )
            if KEY in metadata and len(paths) == 1:
                try:
                    self.manifest = manifest_of(metadata[KEY], self, path)
                except FileError as error:
                    raise PareError(str(error)) from error

    def __getitem__(self, name: str) -> Tensor:
        with safetensors.safe_open(self._where[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _is_manifest(text: str) -> bool:
    """Whether this is a manifest, and no note of others; a part of it may be damaged, too."""
    return sum(f'"{key}"' in text for key in ("version", "ties", "modules", "tensors", "digest")) >= 3


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

    Raises:
        PareError: a tensor has a name that the format does not hold.
    """
    if odd := unwritable(entry.name for entry in entries):
        raise PareError(odd)
    header: dict[str, Any] = {}
    at = 0
    widest = sorted(
        entries, key=lambda entry: -_width(entry)
    )  # the format asks for no gaps, and alignment helps readers
    order = {entry.name: index for index, entry in enumerate(widest)}
    for entry in widest:
        size = entry.count * _width(entry)
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [at, at + size]}
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
        open_regular(path).close()
        with safetensors.safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise PareError(f"{path} is no readable safetensors file: {error}. Check the path.") from error


def _width(entry: Entry) -> int:
    return int(getattr(torch, entry.dtype).itemsize)


def _text(header: dict[str, Any], manifest: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": {KEY: json.dumps(manifest)}, **header}).encode()
    return text + b" " * (-len(text) % 8)


def _raw(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
