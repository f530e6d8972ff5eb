"""The header of a `.pare` file: JSON in a raw deflate stream, checked before anything is believed."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from paring.core import plain_json
from paring.files.pare.code import Code
from paring.files.pare.dictionary import DICTIONARY
from paring.files.pare.error import PareError

LARGEST_HEADER, FREE_HEADER, HEADER_RATIO = 1 << 26, 1 << 20, 64
FREE_PIECES, BYTES_PER_PIECE = 1 << 14, 64
DTYPES: dict[str, torch.dtype] = {
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


@dataclass(frozen=True)
class Piece:
    """Some whole rows of a tensor, or all of it, or a run of entries of long rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    code: Code


@dataclass(frozen=True)
class Section:
    """Side information and code of some pieces: bytes of both, bytes of the side information, and the pieces."""

    length: int
    side: int
    pieces: tuple[Piece, ...]


def packed(sections: list[dict[str, Any]], manifest: Any) -> bytes:
    """The bytes of a header.

    Raises:
        PareError: it is larger than a reader accepts, or the manifest holds what a reader does not.
    """
    text = json.dumps({"sections": sections, "manifest": manifest}, separators=(",", ":"), sort_keys=True).encode()
    try:
        plain_json.parsed(text, plain_json.MANY)
    except plain_json.JSONError as error:
        raise PareError(
            f"the header would be {error}, which no reader accepts; shorten or mend the manifest"
        ) from error
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    found = packer.compress(text) + packer.flush()
    if len(text) > _allowed(found):
        raise PareError(f"the header would take {len(text):,} bytes, more than a reader accepts; shorten the manifest")
    return found


def most_pieces(size: int) -> int:
    """How many pieces a file of so many bytes may have."""
    return max(FREE_PIECES, size // BYTES_PER_PIECE)


def parsed(header: bytes, size: int) -> tuple[tuple[Section, ...], Any]:
    """Sections and manifest.

    Args:
        header: its bytes.
        size: of the whole file.

    Raises:
        PareError: the header cannot be read, or does not make sense.
    """
    unpacker = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = unpacker.decompress(header, _allowed(header))
        if not unpacker.eof or unpacker.unused_data:
            raise PareError("its header is cut off, or larger than allowed")
        found = plain_json.parsed(text, plain_json.MANY)
        if (count := sum(len(given["tensors"]) for given in found["sections"])) > most_pieces(size):
            raise PareError(f"it says that it holds {count:,} tensors in {size:,} bytes")
        sections = tuple(_section(given) for given in found["sections"])
        _check_pieces([piece for section in sections for piece in section.pieces])
        return sections, found["manifest"]
    except PareError:
        raise
    except plain_json.JSONError as error:
        raise PareError(f"its header is {error}") from error
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise PareError(f"its header cannot be read ({type(error).__name__})") from error


def _allowed(header: bytes) -> int:
    return min(LARGEST_HEADER, FREE_HEADER + HEADER_RATIO * len(header))


def _check_pieces(pieces: list[Piece]) -> None:
    """Names are unique, and pieces follow each other and make up their tensor."""
    names: set[str] = set()
    for name, group in groupby(pieces, key=lambda piece: piece.name):
        parts = list(group)
        if name in names:
            raise PareError("two tensors have the same name")
        names.add(name)
        if len(parts) == 1 and parts[0].shape == parts[0].whole:
            continue
        if len({(part.whole, part.dtype) for part in parts}) > 1 or any(part.shape == part.whole for part in parts):
            raise PareError(f"the pieces of {name!r} do not fit together")
        if not all(math.prod(part.shape) for part in parts):
            raise PareError(f"a piece of {name!r} is empty")
        if sum(math.prod(part.shape) for part in parts) != math.prod(parts[0].whole):
            raise PareError(f"the pieces of {name!r} are not all of it")


def _section(given: Any) -> Section:
    length, side = given["length"], given["side"]
    if type(length) is not int or type(side) is not int or not 0 <= side <= length:
        raise PareError("a section has impossible sizes")
    return Section(length, side, tuple(_piece(dict(one)) for one in given["tensors"]))


def _piece(given: dict[str, Any]) -> Piece:
    name, shape = given.pop("name"), _shape(given.pop("shape"))
    dtype, whole = given.pop("dtype", "float32"), _shape(given.pop("whole", list(shape)))
    if type(name) is not str or dtype not in DTYPES:
        raise PareError("the description of a tensor cannot be read")
    return Piece(name, dtype, shape, whole, Code.read(given, DTYPES[dtype].itemsize))


def _shape(given: Any) -> tuple[int, ...]:
    if type(given) is not list or not all(type(n) is int and 0 <= n < 1 << 40 for n in given) or len(given) > 64:
        raise PareError("the shape of a tensor makes no sense")
    if math.prod(n for n in given if n) >= 1 << 60:
        raise PareError("the shape of a tensor is too large")
    return tuple(given)
