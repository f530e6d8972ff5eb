r"""A file of nested values and tensors: what a checkpoint is made of. No pickle, and a digest over every byte.

    b"paring state 2\n"
    length of the header, 8 bytes, little-endian
    header: JSON {"tensors": [[dtype, shape, strides], ...], "state": ...}
    the tensors' bytes, one after another
    SHA-256 of all that is above

In `state` stands {"$": n} for tensor n, {"$tuple": [...]} for a tuple, {"$items": [[key, value], ...]} for a dict whose
keys are not all text, and {"$float": "nan"}, "inf" or "-inf" for what JSON has no number for. Everything that is read is
compared with the file's length before memory is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from paring.core.plain_json import VALUES, JSONError, parsed, size

MAGIC = b"paring state 2\n"
_LENGTH = struct.Struct("<Q")
_DIGEST = hashlib.sha256().digest_size
_NAMES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what to do."""


# --- writing --------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, state: dict[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts, booleans and None.

    Raises:
        CheckpointError: something in it is of another kind, or there is too much of it; the message names the place.
    """
    tensors: list[Tensor] = []
    tree = _tree(state, "", tensors, {})
    described = [[str(t.dtype).removeprefix("torch."), list(t.shape), list(t.stride())] for t in tensors]
    header = json.dumps({"tensors": described, "state": tree}, separators=(",", ":"))
    if size(header) > VALUES:
        raise CheckpointError(f"this state has more than {VALUES:,} values besides its tensors, more than is ever read")
    digest = hashlib.sha256()
    for part in (MAGIC, _LENGTH.pack(len(header)), header.encode(), *map(_bytes, tensors)):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def _tree(value: Any, where: str, tensors: list[Tensor], seen: dict[tuple[Any, ...], int]) -> Any:
    if isinstance(value, Tensor):
        return {"$": _number(value, where, tensors, seen)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_tree(item, f"{where}/{index}", tensors, seen) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        pairs = [(key, _tree(item, f"{where}/{key}", tensors, seen)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$items": [list(pair) for pair in pairs]}
    raise CheckpointError(
        f"'{where.lstrip('/')}' is a {type(value).__name__}, which a checkpoint cannot hold: it takes tensors, numbers, texts, "
        "and dicts, lists and tuples of them"
    )


def _number(value: Tensor, where: str, tensors: list[Tensor], seen: dict[tuple[Any, ...], int]) -> int:
    """Which tensor of the file this is; tied ones are written once."""
    name = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized or value.is_meta or name not in _DTYPES:
        raise CheckpointError(
            f"'{where.lstrip('/')}' is a tensor of {value.layout}, {value.dtype} on {value.device.type}, which a checkpoint "
            "cannot hold: it takes dense tensors that have values"
        )
    key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device) if value.numel() else (where,)
    if key not in seen:
        seen[key] = len(tensors)
        plain = value.detach().resolve_conj().resolve_neg().cpu()
        tensors.append(plain if _dense(list(plain.shape), list(plain.stride())) else plain.contiguous())
    return seen[key]


def _bytes(tensor: Tensor) -> Any:
    """A tensor's memory as a buffer."""
    if not tensor.numel():
        return b""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset()).view(torch.uint8).numpy().data


def _dense(shape: list[int], strides: list[int]) -> bool:
    """Whether the strides walk over memory of exactly the tensor's size, each entry once."""
    step = 1
    for stride, width in sorted((stride, width) for stride, width in zip(strides, shape, strict=True) if width > 1):
        if stride != step:
            return False
        step *= width
    return True


# --- reading --------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, is none, or one bit of it is another one.
    """
    try:
        if not path.is_file():
            raise CheckpointError("it is no file")
        with open(path, "rb") as file:
            return read_from(file, file.seek(0, io.SEEK_END))
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error.strerror or error}") from error


def read_from(file: BinaryIO, length: int) -> dict[str, Any]:
    """The same from an open file of this length. Raises CheckpointError likewise."""
    file.seek(0)
    digest = hashlib.sha256()

    def take(count: int) -> bytes:
        part = file.read(count)
        digest.update(part)
        return part

    start = take(len(MAGIC))
    if start != MAGIC:
        older = start[:2] == b"PK"
        raise CheckpointError(
            "an earlier version of paring wrote it, without a digest" if older else "it is damaged, or no checkpoint"
        )
    left = length - len(MAGIC) - _LENGTH.size - _DIGEST
    if left < 0:
        raise CheckpointError("it is cut short")
    (count,) = _LENGTH.unpack(take(_LENGTH.size))
    if count > left:
        raise CheckpointError("it is damaged or cut short: it says that it is longer than it is")
    tensors, tree = _header(take(count), left - count)
    for tensor in tensors:
        _fill(tensor, file, digest)
    if file.read() != digest.digest():
        raise CheckpointError("it is damaged: its bytes do not match their digest")
    state = _value(tree, _taker(tensors))
    if not isinstance(state, dict):
        raise CheckpointError("it is no checkpoint: what it holds is no dict")
    return state


def _header(text: bytes, left: int) -> tuple[list[Tensor], Any]:
    """The tensors, still without their values, which take exactly `left` bytes, and the tree."""
    try:
        header = parsed(text)
    except JSONError as error:
        raise CheckpointError(f"it is damaged: its header is {error}") from error
    if not isinstance(header, dict) or header.keys() != {"tensors", "state"} or not isinstance(header["tensors"], list):
        raise CheckpointError("it is damaged: its header is not that of a checkpoint")
    sizes = [_size(described) for described in header["tensors"]]
    if sum(sizes) != left:
        raise CheckpointError(
            f"it is damaged or cut short: its tensors take {sum(sizes):,} bytes, and {left:,} are there"
        )
    try:
        made = [torch.empty_strided(shape, strides, dtype=_DTYPES[name]) for name, shape, strides in header["tensors"]]
    except RuntimeError as error:
        raise CheckpointError(f"it is damaged: a tensor cannot be made ({error})") from error
    return made, header["state"]


def _size(described: Any) -> int:
    """Bytes of a tensor that is described so."""
    if isinstance(described, list) and len(described) == 3:
        name, shape, strides = described
        if (
            isinstance(name, str)
            and name in _DTYPES
            and _counts(shape)
            and _counts(strides)
            and len(shape) == len(strides)
        ):
            count = math.prod(shape)
            if not count or _dense(shape, strides):
                return count * int(_DTYPES[name].itemsize)
    raise CheckpointError(f"it is damaged: {str(described)[:100]!r} describes no tensor")


def _counts(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(one) is int and 0 <= one < 1 << 48 for one in value)
    )


def _fill(tensor: Tensor, file: BinaryIO, digest: Any) -> None:
    if not tensor.numel():
        return
    memory = _bytes(tensor)
    if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
        raise CheckpointError("it is cut short")
    digest.update(memory)
    if tensor.dtype == torch.bool and int(tensor.view(torch.uint8).max()) > 1:
        raise CheckpointError("it is damaged: a truth value is neither 0 nor 1")


def _taker(tensors: list[Tensor]) -> Callable[[Any], Tensor]:
    def taken(index: Any) -> Tensor:
        if type(index) is not int or not 0 <= index < len(tensors):
            raise CheckpointError(f"it is damaged: there is no tensor {str(index)[:100]!r}")
        return tensors[index]

    return taken


def _value(tree: Any, tensor: Callable[[Any], Tensor]) -> Any:
    if isinstance(tree, list):
        return [_value(item, tensor) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if not any(key.startswith("$") for key in tree):
        return {key: _value(item, tensor) for key, item in tree.items()}
    if len(tree) == 1:
        ((kind, inside),) = tree.items()
        if kind == "$":
            return tensor(inside)
        if kind == "$float" and inside in ("nan", "inf", "-inf"):
            return float(inside)
        if kind == "$tuple" and isinstance(inside, list):
            return tuple(_value(item, tensor) for item in inside)
        if kind == "$items" and isinstance(inside, list) and all(map(_is_pair, inside)):
            return {key: _value(item, tensor) for key, item in inside}
    raise CheckpointError(f"it is damaged: {str(sorted(tree))[:100]} stands for nothing")


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | int)
