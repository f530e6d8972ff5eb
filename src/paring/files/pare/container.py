"""The `.pare` container: tensors in sections, a JSON header behind them, checksums everywhere (see FORMAT.md).

    8 bytes   89 50 41 52 45 0D 0A, format version
    sections  each: side information, code, CRC-32 of both
    header    JSON, raw deflate
    8 bytes   length of the header, CRC-32 of magic and header; both little-endian

Tensors share a section (and one entropy code) as long as they take few bytes together; large ones are cut into pieces.
Reading and writing hold one tensor and one section at a time in memory.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paring.core.atomic import atomic
from paring.core.regular import open_regular
from paring.files.pare import arrays, varint
from paring.files.pare.arrays import Memory
from paring.files.pare.code import Code
from paring.files.pare.entropy import Decoder, Encoder
from paring.files.pare.error import PareError
from paring.files.pare.groups import ROUNDINGS
from paring.files.pare.header import DTYPES, Piece, most_pieces, packed, parsed
from paring.files.pare.mixed import Pace

VERSION, READ = 2, (1, 2)
MAGIC = b"\x89PARE\r\n"
SECTION = PIECE = 1 << 23
FREE_BYTES = 1 << 24  # what any file may decode to
SMALL_RATIO, SMALL_BYTES = 2000, 1 << 28  # or so many times its size, up to so many bytes
LARGE_RATIO = 32  # or so many times its size
_FOOTER = struct.Struct("<II")
_UNSIGNED: dict[int, tuple[np.dtype[Any], torch.dtype]] = {
    1: (np.dtype(np.uint8), torch.uint8),
    2: (np.dtype(np.uint16), torch.int16),
    4: (np.dtype(np.uint32), torch.int32),
    8: (np.dtype(np.uint64), torch.int64),
}


def decodes_to(size: int) -> int:
    """Bytes to which a file of this size may decode without being asked for.

    2000 times as many, but no more than 256 MiB or 32 times as many, whichever is more. 16 MiB are always free.
    """
    return max(FREE_BYTES, min(SMALL_RATIO * size, SMALL_BYTES), LARGE_RATIO * size)


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: in the state dict.
        dtype: of the tensor.
        shape: of the tensor.
        codes: how its pieces are written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    codes: tuple[Code, ...]

    @property
    def count(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def write(path: str | os.PathLike[str], tensors: Iterable[tuple[str, Tensor]], manifest: Any) -> None:
    """Write tensors and a JSON manifest; the file appears whole or not at all.

    Args:
        path: where to.
        tensors: (name, tensor), one after the other; a generator is taken tensor by tensor.
        manifest: anything JSON can hold; comes back from `File.manifest`.

    Raises:
        PareError: a tensor of a kind that the format does not hold, or a name twice.
        OSError: the folder cannot be written, or the disk is full; an old file stays as it was.
    """
    with atomic(path) as file:
        write_into(file, tensors, manifest)


def write_into(file: BinaryIO, tensors: Iterable[tuple[str, Tensor]], manifest: Any) -> None:
    """The same into an open file."""
    sections: list[dict[str, Any]] = []
    file.write(MAGIC + bytes([VERSION]))
    section = _Writer()
    pace = Pace()
    for piece, bits, strides, memory in _pieces(tensors, pace):
        pace.nbytes += bits.nbytes
        if section.entries and section.size + bits.nbytes > SECTION:
            sections.append(section.close(file))
            section = _Writer()
        section.add(piece, bits, strides, memory)
    if section.entries:
        sections.append(section.close(file))
    header = packed(sections, manifest)
    pieces, size = sum(len(one["tensors"]) for one in sections), file.tell() + len(header) + _FOOTER.size
    if pieces > most_pieces(size):
        raise PareError(f"{pieces:,} tensors in {size:,} bytes are more than a reader accepts; join the small ones")
    file.write(header + _FOOTER.pack(len(header), zlib.crc32(header, zlib.crc32(MAGIC + bytes([VERSION])))))


class _Writer:
    """One section."""

    def __init__(self) -> None:
        self.encoder, self.side, self.size = Encoder(), bytearray(), 0
        self.entries: list[dict[str, Any]] = []

    def add(self, piece: dict[str, Any], bits: NDArray[Any], strides: tuple[int, ...], memory: Memory) -> None:
        dtype = piece.get("dtype", "float32")
        code, own = arrays.write(bits, self.encoder, strides, memory, dtype if dtype in ROUNDINGS else None)
        self.side += own
        self.size += bits.nbytes
        self.entries.append(piece | code.plain())

    def close(self, file: BinaryIO) -> dict[str, Any]:
        body = bytes(self.side) + self.encoder.bytes()
        file.write(body + struct.pack("<I", zlib.crc32(body)))
        return {"length": len(body), "side": len(self.side), "tensors": self.entries}


def _pieces(
    tensors: Iterable[tuple[str, Tensor]], pace: Pace
) -> Iterator[tuple[dict[str, Any], NDArray[Any], tuple[int, ...], Memory]]:
    """What goes into the header for each piece, its bits, strides along its rows, and what its pieces share."""
    names: set[str] = set()
    for name, tensor in tensors:
        if name in names:
            raise PareError(f"there are two tensors with the name {name!r}")
        names.add(name)
        bits, dtype = _bits(name, tensor)
        told: dict[str, Any] = {"name": name} | ({} if dtype == "float32" else {"dtype": dtype})
        shape = bits.shape
        strides = tuple(math.prod(shape[k:]) for k in range(2, len(shape)))
        memory = Memory(pace)
        if bits.nbytes <= PIECE:
            yield told | {"shape": list(shape)}, bits, strides, memory
            continue
        row = bits.nbytes // shape[0]
        flat = bits if row <= PIECE else bits.reshape(-1)
        step = max(1, PIECE // (row if row <= PIECE else bits.itemsize))
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            yield told | {"shape": list(part.shape), "whole": list(shape)}, part, strides, memory


def _bits(name: str, tensor: Tensor) -> tuple[NDArray[Any], str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout is not torch.strided:
        raise PareError(f"{name!r} is {tensor.dtype} ({tensor.layout}): .pare files hold dense {', '.join(DTYPES)}")
    if tensor.is_meta:
        raise PareError(f"{name!r} is on the meta device and has no numbers yet; give the network its weights first")
    unsigned, carrier = _UNSIGNED[tensor.element_size()]
    flat = tensor.detach().cpu().contiguous()
    found: NDArray[Any] = flat.view(carrier).numpy().view(unsigned)
    return found, dtype


class File:
    """An open `.pare` file: the header is read and checked, tensors are decoded when asked for.

    Args:
        path: the file.
        max_bytes: largest size of all decoded tensors together; by default that of `decodes_to`, so that a hostile file
            cannot ask for much more memory than it takes itself.

    Raises:
        PareError: the file is missing, damaged, cut off, of another version, or would decode to more than `max_bytes`.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path) as file:
                self.size = os.fstat(file.fileno()).st_size
                header = self._header(file)
        except OSError as error:
            raise PareError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
        try:
            self._sections, self.manifest = parsed(header, self.size)
        except PareError as error:
            raise PareError(f"{path} is damaged: {error}. Pack it again, or fetch it again.") from error
        total = sum(s.length + 4 for s in self._sections) + len(MAGIC) + 1
        if total != self._header_at:
            raise PareError(f"{path} is damaged: its sections take {total} bytes, there are {self._header_at}.")
        need = sum(entry.count * DTYPES[entry.dtype].itemsize for entry in self.entries)
        allowed = decodes_to(self.size) if max_bytes is None else max_bytes
        if need > allowed:
            raise PareError(
                f"{path} ({self.size:,} bytes) would decode to {need:,} bytes, more than the {allowed:,} allowed; "
                "pass max_bytes if you trust it"
            )
        if not Pace(need).allows(sum(arrays.steps(p.code, p.shape) for s in self._sections for p in s.pieces)):
            raise PareError(f"{path} is damaged: it would take long to decode for what it holds")

    @property
    def entries(self) -> list[Entry]:
        """All tensors, in order."""
        groups = groupby((piece for section in self._sections for piece in section.pieces), key=lambda p: p.name)
        found = [(name, list(pieces)) for name, pieces in groups]
        return [Entry(name, p[0].dtype, p[0].whole, tuple(one.code for one in p)) for name, p in found]

    @property
    def header_bytes(self) -> int:
        """What is neither side information nor code: magic, header, checksums."""
        return self.size - sum(section.length for section in self._sections)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), one after the other.

        Raises:
            PareError: a section is damaged.
        """
        for name, tensor, _ in self.measured(measure=False):
            yield name, tensor

    def measured(self, measure: bool = True) -> Iterator[tuple[str, Tensor, float]]:
        """(name, tensor, bits of the file that hold its entries), one after the other.

        Raises:
            PareError: a section is damaged.
        """
        filled, bits = 0, 0.0
        whole: NDArray[Any] = np.empty(0)
        for piece, part, own in self._decoded(measure):
            if piece.shape == piece.whole:
                yield piece.name, _tensor(part, piece), own
                continue
            if filled == 0:
                whole, bits = np.empty(math.prod(piece.whole), dtype=part.dtype), 0.0
            whole[filled : filled + part.size] = part.reshape(-1)
            filled, bits = filled + part.size, bits + own
            if filled == whole.size:
                yield piece.name, _tensor(whole, piece), bits
                filled = 0

    def _decoded(self, measure: bool) -> Iterator[tuple[Piece, NDArray[Any], float]]:
        with open(self.path, "rb") as file:
            file.seek(len(MAGIC) + 1)
            for section in self._sections:
                body, check = file.read(section.length), file.read(4)
                if len(body) != section.length or check != struct.pack("<I", zlib.crc32(body)):
                    names = ", ".join(piece.name for piece in section.pieces[:3])
                    raise PareError(f"{self.path} is damaged in the section of {names}. Pack or fetch it again.")
                side, decoder = varint.Reader(body[: section.side]), Decoder(body[section.side :], measure)
                for piece in section.pieces:
                    before, at = decoder.bits, side.at
                    unsigned, _ = _UNSIGNED[DTYPES[piece.dtype].itemsize]
                    bits = arrays.read(piece.code, piece.shape, unsigned, side, decoder)
                    yield piece, bits, decoder.bits - before + 8 * (side.at - at)
                if side.rest():
                    raise PareError(f"{self.path} is damaged: a section holds more than its tensors")

    def _header(self, file: BinaryIO) -> bytes:
        start = file.read(len(MAGIC) + 1)
        if start[: len(MAGIC)] != MAGIC:
            raise PareError(f"{self.path} ({self.size:,} bytes) is no .pare file")
        if len(start) == len(MAGIC) or start[-1] not in READ:
            raise PareError(
                f"{self.path} has format version {start[-1] if len(start) > len(MAGIC) else '?'}, this paring reads "
                f"{' and '.join(map(str, READ))}; use a matching paring"
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


def _tensor(bits: NDArray[Any], piece: Piece) -> Tensor:
    dtype = DTYPES[piece.dtype]
    _, carrier = _UNSIGNED[dtype.itemsize]
    signed = np.ascontiguousarray(bits).view(np.dtype(str(carrier).removeprefix("torch.")))
    return torch.from_numpy(signed).view(dtype).reshape(piece.whole)
