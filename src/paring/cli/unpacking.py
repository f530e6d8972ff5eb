"""`paring unpack` and `paring info`: what a `.pare` file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paring.cli.arguments import read
from paring.cli.bytes_progress import BytesProgress
from paring.cli.command import CommandError
from paring.cli.human import DASH, exact, size
from paring.core.printable import printable
from paring.files import Entry, File
from paring.files.pack import checked_manifest
from paring.files.shards import save_stream


@dataclass(frozen=True)
class UnpackArguments:
    """Which file, and where to.

    Args:
        file: the .pare file.
        out: the .safetensors file; `pr.load` reads it when the file holds a network.
        max_bytes: largest size of all tensors together; 0 allows 2000 times the file up to 256 MiB, 32 times beyond.
        quiet: show no progress.
    """

    file: Path
    out: Path
    max_bytes: int = 0
    quiet: bool = False


def unpack_command(words: Sequence[str]) -> int:
    """Run `paring unpack`."""
    options = read(
        UnpackArguments,
        words,
        first="file",
        prog="paring unpack",
        description=(
            "Decode a .pare file into a .safetensors file, tensor by tensor.\n\nexamples:\n"
            "  paring unpack net.pare --out net.safetensors"
        ),
    )
    if options.out.is_dir():
        raise CommandError(f"--out {options.out}: is a folder; name the .safetensors file")
    file = File(options.file, options.max_bytes or None)
    manifest = checked_manifest(file)
    with BytesProgress("unpacking", sum(map(_bytes, file.entries)), not options.quiet) as progress:
        save_stream(options.out, file.entries, _watched(file, progress), manifest)
    print(f"{options.out}: {exact(options.out.stat().st_size)} bytes from {exact(file.size)}")
    return 0


@dataclass(frozen=True)
class InfoArguments:
    """Which file.

    Args:
        file: the .pare file.
        max_bytes: largest size of all tensors together; 0 allows 2000 times the file up to 256 MiB, 32 times beyond.
        quiet: show no progress.
    """

    file: Path
    max_bytes: int = 0
    quiet: bool = False


def info_command(words: Sequence[str]) -> int:
    """Run `paring info`."""
    options = read(
        InfoArguments,
        words,
        first="file",
        prog="paring info",
        description=(
            "Tensor by tensor, what a .pare file holds: the code, the number of different values, the entropy of their "
            "frequencies in bits per entry, the bits it takes, and its share of the file. Below the entropy lies what "
            "contexts gain.\n\nexamples:\n  paring info net.pare"
        ),
    )
    file = File(options.file, options.max_bytes or None)
    with BytesProgress("reading", sum(map(_bytes, file.entries)), not options.quiet) as progress:
        lines = list(_lines(file, progress))
    print(table(file, lines))
    return 0


@dataclass(frozen=True)
class Line:
    """One tensor of a file.

    Attributes:
        entry: name, shape and codes.
        symbols: number of different values.
        entropy: of their frequencies, bits per entry.
        bits: that its entries take in the file.
    """

    entry: Entry
    symbols: int
    entropy: float
    bits: float


def _lines(file: File, progress: BytesProgress) -> Iterator[Line]:
    entries = {entry.name: entry for entry in file.entries}
    for name, tensor, bits in file.measured():
        symbols, found = entropy(tensor)
        progress.add(_bytes(entries[name]), name)
        yield Line(entries[name], symbols, found, bits)


def entropy(tensor: Tensor) -> tuple[int, float]:
    """Number of different bit patterns, and the entropy of their frequencies in bits per entry."""
    flat = tensor.contiguous().reshape(-1)
    if not len(flat):
        return 0, 0.0
    width = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[flat.element_size()]
    counts = np.unique(flat.view(torch.uint8).numpy().view(width), return_counts=True)[1]
    share = counts / len(flat)
    return len(counts), float(-(share * np.log2(share)).sum()) + 0.0


def table(file: File, lines: Sequence[Line]) -> str:
    """The layer table, and the totals."""
    heads = ("tensor", "shape", "code", "values", "entropy", "bits per entry", "bytes", "share")
    rows = [heads]
    for line in lines:
        entry = line.entry
        kinds = dict.fromkeys(code.kind for code in entry.codes)
        each = f"{line.bits / entry.count:.3f}" if entry.count else DASH
        shape = "×".join(map(str, entry.shape)) or "scalar"
        share = f"{100 * line.bits / 8 / file.size:.1f} %"
        shown = (f"{line.entropy:.3f}", each, exact(line.bits / 8), share)
        rows.append((printable(entry.name, longest=120), shape, "+".join(kinds), exact(line.symbols), *shown))
    rest = file.size - sum(line.bits for line in lines) / 8
    rows.append(("(header, checksums, padding)", "", "", "", "", "", exact(rest), f"{100 * rest / file.size:.1f} %"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    aligned = [
        "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    count = sum(line.entry.count for line in lines)
    given = sum(map(_bytes, (line.entry for line in lines)))
    total = (
        f"{exact(count)} numbers in {exact(file.size)} bytes: {8 * file.size / max(1, count):.3f} bits each, "
        f"{4 * count / file.size:.1f} times smaller than float32, {given / file.size:.1f} times smaller than {size(given)} unpacked"
    )
    return "\n".join([*(line.rstrip() for line in aligned), "", total])


def _watched(file: File, progress: BytesProgress) -> Iterator[tuple[str, Tensor]]:
    sizes = {entry.name: _bytes(entry) for entry in file.entries}
    for name, tensor in file.tensors():
        yield name, tensor
        progress.add(sizes[name], name)


def _bytes(entry: Entry) -> int:
    return entry.count * int(getattr(torch, entry.dtype).itemsize)
