"""The `.pare` container: tensors in sections, a JSON header behind them, checksums everywhere (see FORMAT.md).

    8 bytes   89 50 41 52 45 0D 0A, format version
    sections  each: side information, code, CRC-32 of both
    header    JSON, raw deflate
    8 bytes   length of the header, CRC-32 of magic and header; both little-endian

Small tensors share a section (and one entropy code). Reading and writing hold one section at a time in memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paring.codec import arrays, varint
from paring.codec.arrays import Code
from paring.codec.entropy import Decoder, Encoder
from paring.codec.error import PareError
from paring.core.atomic import atomic

VERSION = 1
MAGIC = b"\x89PARE\r\n"
SHARED = 1 << 16
LARGEST_HEADER = 1 << 26
FREE_BYTES, FREE_RATIO = 1 << 26, 2000
_FOOTER = struct.Struct("<II")
_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
_UNSIGNED: dict[int, tuple[np.dtype[Any], torch.dtype]] = {
    1: (np.dtype(np.uint8), torch.uint8),
    2: (np.dtype(np.uint16), torch.int16),
    4: (np.dtype(np.uint32), torch.int32),
    8: (np.dtype(np.uint64), torch.int64),
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: in the state dict.
        dtype: of the tensor.
        shape: of the tensor.
        code: how it is written.
        bits: length of its part of the file, side information and code (estimated to the bit within a shared section).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    code: Code
    bits: float

    @property
    def count(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Section:
    length: int
    side: int
    entries: tuple[Entry, ...]


def write(path: str | os.PathLike[str], tensors: Iterable[tuple[str, Tensor]], manifest: dict[str, Any]) -> None:
    """Write tensors and a JSON manifest; the file appears whole or not at all.

    Args:
        path: where to.
        tensors: (name, tensor), one after the other; a generator is taken tensor by tensor.
        manifest: anything JSON can hold; comes back from `File.manifest`.

    Raises:
        PareError: a tensor of a kind that the format does not hold, or a name twice.
    """
    sections: list[dict[str, Any]] = []
    names: set[str] = set()
    with atomic(path) as file:
        file.write(MAGIC + bytes([VERSION]))
        group: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in tensors:
            if name in names:
                raise PareError(f"there are two tensors with the name {name!r}")
            names.add(name)
            length = tensor.numel() * tensor.element_size()
            if group and size + length > SHARED:
                sections.append(_write_section(file, group))
                group, size = [], 0
            group.append((name, tensor))
            size += length
        if group:
            sections.append(_write_section(file, group))
        text = json.dumps({"sections": sections, "manifest": manifest}, separators=(",", ":"), sort_keys=True)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        header = packer.compress(text.encode()) + packer.flush()
        file.write(header + _FOOTER.pack(len(header), zlib.crc32(header, zlib.crc32(MAGIC + bytes([VERSION])))))


def _write_section(file: BinaryIO, group: list[tuple[str, Tensor]]) -> dict[str, Any]:
    encoder, side, entries = Encoder(), b"", []
    for name, tensor in group:
        bits, dtype = _bits(name, tensor)
        before = encoder.bits
        code, own = arrays.write(bits, encoder)
        side += own
        cost = round(8 * len(own) + encoder.bits - before)
        entries.append({"name": name, "dtype": dtype, "shape": list(tensor.shape), "bits": cost} | code.plain())
    body = side + encoder.bytes()
    file.write(body + struct.pack("<I", zlib.crc32(body)))
    return {"length": len(body), "side": len(side), "tensors": entries}


def _bits(name: str, tensor: Tensor) -> tuple[NDArray[Any], str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.layout is not torch.strided:
        raise PareError(f"{name!r} is {tensor.dtype} ({tensor.layout}): .pare files hold dense {', '.join(_DTYPES)}")
    unsigned, carrier = _UNSIGNED[tensor.element_size()]
    flat = tensor.detach().cpu().contiguous()
    found: NDArray[Any] = flat.view(carrier).numpy().view(unsigned)
    return found, dtype


class File:
    """An open `.pare` file: the header is read and checked, tensors are decoded when asked for.

    Args:
        path: the file.
        max_bytes: largest size of all decoded tensors together; by default 64 MiB or 2000 times the file, whichever is
            more, so that a small hostile file cannot ask for more memory than there is.

    Raises:
        PareError: the file is missing, damaged, cut off, of another version, or would decode to more than `max_bytes`.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                header = self._header(file)
        except OSError as error:
            raise PareError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
        try:
            self._sections, self.manifest = _parse(header)
        except PareError as error:
            raise PareError(f"{path} is damaged: {error}. Pack it again, or fetch it again.") from error
        total = sum(s.length + 4 for s in self._sections) + len(MAGIC) + 1
        if total != self._header_at:
            raise PareError(f"{path} is damaged: its sections take {total} bytes, there are {self._header_at}.")
        need = sum(e.count * _DTYPES[e.dtype].itemsize for e in self.entries)
        allowed = max(FREE_BYTES, FREE_RATIO * self.size) if max_bytes is None else max_bytes
        if need > allowed:
            raise PareError(
                f"{path} ({self.size:,} bytes) would decode to {need:,} bytes, more than the {allowed:,} allowed; "
                "pass max_bytes if you trust it"
            )

    @property
    def entries(self) -> list[Entry]:
        """All tensors, in order."""
        return [entry for section in self._sections for entry in section.entries]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), section by section.

        Raises:
            PareError: a section is damaged.
        """
        with open(self.path, "rb") as file:
            file.seek(len(MAGIC) + 1)
            for section in self._sections:
                body, check = file.read(section.length), file.read(4)
                if len(body) != section.length or check != struct.pack("<I", zlib.crc32(body)):
                    names = ", ".join(entry.name for entry in section.entries[:3])
                    raise PareError(f"{self.path} is damaged in the section of {names}. Pack or fetch it again.")
                side, decoder = varint.Reader(body[: section.side]), Decoder(body[section.side :])
                for entry in section.entries:
                    dtype = _DTYPES[entry.dtype]
                    unsigned, carrier = _UNSIGNED[dtype.itemsize]
                    bits = np.ascontiguousarray(arrays.read(entry.code, entry.shape, unsigned, side, decoder))
                    signed = bits.view(np.dtype(str(carrier).removeprefix("torch.")))
                    yield entry.name, torch.from_numpy(signed).view(dtype).reshape(entry.shape)
                if side.rest():
                    raise PareError(f"{self.path} is damaged: a section holds more than its tensors")

    def _header(self, file: BinaryIO) -> bytes:
        start = file.read(len(MAGIC) + 1)
        if start[: len(MAGIC)] != MAGIC:
            raise PareError(f"{self.path} ({self.size:,} bytes) is no .pare file")
        if len(start) == len(MAGIC) or start[-1] != VERSION:
            raise PareError(
                f"{self.path} has format version {start[-1] if len(start) > len(MAGIC) else '?'}, this paring reads "
                f"{VERSION}; use a matching paring"
            )
        smallest = len(start) + _FOOTER.size
        cut = f"{self.path} ({self.size:,} bytes) is damaged or cut off. Pack it again, or fetch it again."
        if self.size < smallest:
            raise PareError(cut)
        file.seek(self.size - _FOOTER.size)
        length, check = _FOOTER.unpack(file.read(_FOOTER.size))
        self._header_at = self.size - _FOOTER.size - length
        if self._header_at < len(start):
            raise PareError(cut)
        file.seek(self._header_at)
        header = file.read(length)
        if zlib.crc32(header, zlib.crc32(start)) != check:
            raise PareError(cut)
        return header


def _parse(header: bytes) -> tuple[tuple[_Section, ...], Any]:
    unpacker = zlib.decompressobj(-15)
    try:
        text = unpacker.decompress(header, LARGEST_HEADER)
        if not unpacker.eof or unpacker.unused_data:
            raise PareError("its header is cut off, or larger than allowed")
        found = json.loads(text)
        sections = tuple(_section(given) for given in found["sections"])
        names = [entry.name for section in sections for entry in section.entries]
        if len(set(names)) != len(names):
            raise PareError("two tensors have the same name")
        return sections, found["manifest"]
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, PareError):
            raise
        raise PareError(f"its header cannot be read ({type(error).__name__})") from error


def _section(given: Any) -> _Section:
    length, side = given["length"], given["side"]
    if type(length) is not int or type(side) is not int or not 0 <= side <= length:
        raise PareError("a section has impossible sizes")
    return _Section(length, side, tuple(_entry(dict(one)) for one in given["tensors"]))


def _entry(given: dict[str, Any]) -> Entry:
    name, dtype, shape, bits = (given.pop(key) for key in ("name", "dtype", "shape", "bits"))
    if type(name) is not str or dtype not in _DTYPES or type(bits) is not int:
        raise PareError("the description of a tensor cannot be read")
    if type(shape) is not list or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 64:
        raise PareError(f"the shape of {name!r} makes no sense")
    return Entry(name, dtype, tuple(shape), Code.read(given, _DTYPES[dtype].itemsize), float(bits))
