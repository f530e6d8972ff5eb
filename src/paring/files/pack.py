"""A network as a `.pare` file and back: `pack` and `unpack`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from paring.core import Progress, Watch, plain_net
from paring.core.atomic import atomic
from paring.core.file_error import FileError
from paring.core.quantised import floats_of, in_floats, is_quantised
from paring.core.unwrap import seen_through
from paring.files.file import described
from paring.files.manifest import VERSION, checked
from paring.files.pare import container
from paring.files.pare.container import File
from paring.files.pare.error import PareError
from paring.files.pare.header import DTYPES
from paring.files.rebuild import Source, rebuilt

_FLOATS = {dtype for dtype in DTYPES.values() if dtype.is_floating_point}
_CARRIERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MANIFEST = {"version": VERSION, "ties": {}, "modules": {}}


def pack(
    net: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    signed_zeros: bool = False,
    verify: bool = True,
    manifest: dict[str, Any] | None = None,
    watch: Watch | None = None,
    accept: Callable[[Path], object] | None = None,
) -> int:
    """Write a network, or tensors by name, to a `.pare` file, without loss. Tied tensors are written once.

    Everything in the state dict is written and charged: parameters, running statistics, counters. A mapping is read
    tensor by tensor, so one that loads lazily needs no more memory than its largest tensor and some.

    Of quantised weights (torchao's, and layers of `torch.ao.nn.quantized`) the numbers that they stand for are written. The coder
    finds their levels and scales again, so that they take few bits. A network that was quantised comes back in floats.

    Args:
        net: a network, or name -> tensor.
        path: where to; an old file there stays until the new one is whole.
        signed_zeros: keep -0.0 apart from 0.0, which costs up to a bit for every zero; by default both are written as 0.0.
        verify: read the file back and compare every bit before it takes its place.
        manifest: of a mapping: what `unpack` needs to rebuild the network it belongs to (`paring.files.file`).
        watch: called after every tensor with the bytes that are written, and then verified, so far (`paring.core.Progress`).
        accept: called with the path of the new file before it takes its place; what it raises leaves the old file there.

    Returns:
        Bytes of the file.

    Raises:
        PareError: something in the state is no dense tensor of a known type, or the file read back differs.
        OSError: the folder cannot be written, or the disk is full.
    """
    if isinstance(net, nn.Module):
        net = in_floats(plain_net(net, "pack", PareError), "pack", PareError)
        try:
            with seen_through(net):
                state, manifest = described(net)
        except FileError as error:
            raise PareError(str(error)) from error
        tensors: Mapping[str, Tensor] = state
    else:
        odd = [name for name in net if type(name) is not str]
        if odd:
            raise PareError(f"{odd[0]!r} is no name of a tensor: names are text")
        tensors = net
        if isinstance(net, dict):
            tensors, manifest = _untied(net, manifest)
    with atomic(path) as file:
        told = _Told.of(tensors, 1 + verify, watch)
        container.write_into(file, _watched(tensors, signed_zeros, told), _MANIFEST if manifest is None else manifest)
        file.flush()
        if verify:
            _verify(Path(file.name), tensors, signed_zeros, told)
        if accept is not None:
            accept(Path(file.name))
        return file.tell()


@overload
def unpack(net: None, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Tensor]: ...


@overload
def unpack(net: Source, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> nn.Module: ...


def unpack(
    net: Source | None, path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> nn.Module | dict[str, Tensor]:
    """What a `.pare` file holds.

    Args:
        net: a network of the architecture that was packed, of any widths, which is copied and left as it is, or a function
            without arguments that makes one; None gives the tensors by name.
        path: the file.
        max_bytes: largest size of all tensors together; by default 2000 times the file up to 256 MiB, and 32 times beyond.

    Returns:
        The network on the CPU and in eval mode, as `run.finish()` gives it, or a dictionary of tensors, tied names sharing one.

    Raises:
        PareError: the file is missing, damaged, too large, or holds another architecture.
        TypeError: no network and nothing that makes one.
    """
    if isinstance(net, str | os.PathLike):
        raise TypeError("unpack(net, path): the network comes first, or None for the tensors by name, then the file")
    file = File(path, max_bytes)
    manifest = checked_manifest(file)
    tensors = dict(file.tensors())
    if net is None:
        return tensors | {alias: tensors[name] for alias, name in manifest["ties"].items()}
    try:
        return rebuilt(net, manifest, tensors, path)
    except FileError as error:
        raise PareError(str(error)) from error


def checked_manifest(file: File) -> dict[str, Any]:
    """The manifest of a file of a network or of tensors, with nothing in it that makes no sense.

    Raises:
        PareError: it makes no sense.
    """
    if not isinstance(file.manifest, dict):
        raise PareError(
            f"{file.path} holds no manifest of a network; read its tensors with paring.files.pare.container.File"
        )
    try:
        return checked(_MANIFEST | file.manifest, {e.name: (e.dtype, e.shape) for e in file.entries}, file.path)
    except FileError as error:
        raise PareError(str(error)) from error


def _untied(
    state: dict[str, Tensor], manifest: dict[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a dictionary that share their memory entirely, once; the others go into the manifest's ties."""
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise PareError(f"{', '.join(map(repr, odd[:3]))} is no tensor; keep such state out of the file")
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name, value in state.items():
        key: object = name
        if value.layout is torch.strided and value.numel() and not is_quantised(value):
            place = (value.untyped_storage().data_ptr(), value.storage_offset())
            key = (*place, tuple(value.shape), value.stride(), value.dtype)
        owner = first.setdefault(key, name)
        if owner != name:
            ties[name] = owner
    if not ties:
        return state, manifest
    told = dict(_MANIFEST if manifest is None else manifest)
    return {n: v for n, v in state.items() if n not in ties}, told | {"ties": {**told.get("ties", {}), **ties}}


@dataclass
class _Told:
    """Who is told how many bytes are done; the total is known of tensors that are in memory."""

    watch: Watch | None
    total: int | None
    done: int = 0

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], passes: int, watch: Watch | None) -> _Told:
        if watch is None or not isinstance(tensors, dict):
            return cls(watch, None)
        return cls(watch, passes * sum(v.numel() * v.element_size() for v in tensors.values() if isinstance(v, Tensor)))

    def __call__(self, name: str, tensor: Tensor) -> None:
        self.done += tensor.numel() * tensor.element_size()
        if self.watch is not None:
            self.watch(Progress(self.done, self.total, name))


def _watched(tensors: Mapping[str, Tensor], signed_zeros: bool, told: _Told) -> Iterator[tuple[str, Tensor]]:
    for name in tensors:
        given = tensors[name]
        if not isinstance(given, Tensor):
            raise PareError(f"{name!r} is a {type(given).__name__} and no tensor; keep such state out of the file")
        tensor = _canonical(floats_of(given, name, "pack", PareError), signed_zeros)
        yield name, tensor
        told(name, tensor)


def _canonical(tensor: Tensor, signed_zeros: bool) -> Tensor:
    """The tensor with 0.0 for -0.0, unless these are kept. It goes by bits, as arithmetic may be told to flush denormals."""
    carrier = _CARRIERS.get(tensor.element_size()) if tensor.dtype in _FLOATS else None
    if signed_zeros or carrier is None or tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return tensor
    bits = tensor.detach().contiguous().view(carrier)
    negative = bits == torch.iinfo(carrier).min  # the sign bit alone
    return bits.masked_fill(negative, 0).view(tensor.dtype) if bool(negative.any()) else tensor


def _verify(path: Path, tensors: Mapping[str, Tensor], signed_zeros: bool, told: _Told) -> None:
    file = File(path, max_bytes=1 << 62)
    if [entry.name for entry in file.entries] != list(tensors):
        raise PareError("the file read back holds other tensors than were written; nothing was replaced")
    for name, found in file.tensors():
        given = _canonical(floats_of(tensors[name], name, "pack", PareError), signed_zeros).detach().cpu().contiguous()
        same = given.dtype == found.dtype and given.shape == found.shape
        if not same or not torch.equal(_bytes(given), _bytes(found)):
            raise PareError(
                f"{name!r} does not come back as it was written; nothing was replaced. Check the memory and disk."
            )
        told(name, found)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
