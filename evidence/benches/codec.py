"""`python -m evidence bench codec`: weights of several kinds through coders: bits per weight against the entropy, and MB/s of float32.

The kinds are drawn with fixed seeds, so that the sizes are the same everywhere. Times are CPU time of one process on one
thread, encoding everything that is needed to decode (tables too), the best of the repeats. zstd, lzma and Huffman get
what suits them best: one byte per weight with the index of its value where there are at most 256 values (their tables are
not charged), the float32 bytes otherwise. Of Huffman only the length is computed. NNCodec (`--nncodec`, see `nncodec`)
gets the same indices as integers, 0 for the most frequent value; kinds of more values are not for it.
"""

from __future__ import annotations

import functools
import heapq
import lzma
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evidence.benches import nncodec
from evidence.benches.book import Asked, Book
from paring.files import File, write

Floats = NDArray[np.float32]
ROWS, COLUMNS = 1024, 2048


def dense() -> Floats:
    """Trained-like floats, not quantised."""
    return np.random.default_rng(0).normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)


def quantised(levels: int = 16) -> Floats:
    """The same on a codebook of so many values, at the quantiles."""
    weights = dense()
    edges = np.quantile(weights, np.arange(1, levels) / levels)
    values = np.array([weights.mean(), *np.quantile(weights, (np.arange(levels) + 0.5) / levels)], dtype=np.float32)[1:]
    found: Floats = values[np.searchsorted(edges, weights)]
    return found


def pruned(density: float = 0.05) -> Floats:
    """The largest weights only; rows and columns have scales of their own, so that they are unevenly dense."""
    generator = np.random.default_rng(1)
    scales = np.exp(0.5 * generator.normal(size=(ROWS, 1)) + 0.5 * generator.normal(size=(1, COLUMNS)))
    weights = (dense() * scales).astype(np.float32)
    return np.where(np.abs(weights) > np.quantile(np.abs(weights), 1 - density), weights, np.float32(0))


def shared() -> Floats:
    """Pruned, and what is left on eight values."""
    weights = pruned()
    size = np.abs(weights)
    edges = np.quantile(size[size > 0], [0.25, 0.5, 0.75])
    values = np.array([0.1, 0.15, 0.22, 0.4], dtype=np.float32)
    return np.where(size > 0, np.sign(weights) * values[np.searchsorted(edges, size)], np.float32(0))


def images() -> Floats:
    """Pruned to three values, survivors and signs alike in neighbouring columns, as in a first layer that looks at images."""
    noise = np.random.default_rng(2).normal(size=(ROWS, COLUMNS + 5))
    smooth = np.stack([noise[:, k : k + COLUMNS] for k in range(6)]).mean(0)
    return np.where(np.abs(smooth) > np.quantile(np.abs(smooth), 0.95), np.sign(smooth) * 0.25, 0).astype(np.float32)


def signs() -> Floats:
    """Plus or minus a scale for each row."""
    generator = np.random.default_rng(3)
    return (np.sign(dense()) * generator.uniform(0.01, 0.1, (ROWS, 1))).astype(np.float32)


def grid() -> Floats:
    """Eight-bit integers times a step for each row."""
    weights = dense()
    steps = (np.abs(weights).max(1, keepdims=True) / 127).astype(np.float32)
    found: Floats = np.rint(weights / steps).astype(np.float32) * steps + np.float32(0)  # no -0.0
    return found


def groups() -> Floats:
    """Four bits times a scale for 32 weights."""
    weights = dense().reshape(-1, 32)
    steps = np.abs(weights).max(1, keepdims=True) / np.float32(7)
    found: Floats = np.rint(weights / steps) * steps + np.float32(0)
    return found.reshape(ROWS, COLUMNS)


def normal() -> Floats:
    """One of 16 numbers of a list (the quantiles of the normal distribution, about) times the largest of 64 weights."""
    weights = dense().reshape(-1, 64)
    scales = np.abs(weights).max(1, keepdims=True)
    listed = np.sinh(np.linspace(-2, 2, 16)).astype(np.float32)
    listed /= listed[-1]
    found: Floats = listed[np.searchsorted((listed[1:] + listed[:-1]) / 2, weights / scales)] * scales
    return found.reshape(ROWS, COLUMNS)


KINDS: dict[str, Callable[[], Floats]] = {
    "floats": dense,
    "16 values": quantised,
    "5 % floats": pruned,
    "5 %, 8 values": shared,
    "5 %, ±s, smooth": images,
    "±s per row": signs,
    "8-bit grid per row": grid,
    "4 bits, groups of 32": groups,
    "16 listed values, groups of 64": normal,
}


def symbols(weights: Floats) -> tuple[bytes, float]:
    """What the other coders get, and the entropy in bits per weight of independent symbols, float32 words or levels."""
    values, index, counts = np.unique(weights, return_inverse=True, return_counts=True)
    if len(values) > 256:
        largest = np.abs(weights).max(1, keepdims=True)
        scaled = 127 * weights / np.where(largest > 0, largest, np.float32(1))
        levels, places, own = np.unique(np.rint(scaled), return_inverse=True, return_counts=True)
        exact = np.rint(scaled).astype(np.float32)
        if len(levels) > 256 or np.abs(scaled - exact).max() > 1e-3:
            return weights.tobytes(), _entropy(counts)
        index, counts = places, own
    return index.astype(np.uint8).tobytes(), _entropy(counts)


def run(asked: Asked) -> Path:
    """Measure every kind with every coder of which the results file lacks a row."""
    book = Book(asked, "codec")
    known = dict(CODERS)
    if asked.nncodec is not None:
        known["NNCodec"] = functools.partial(_nncodec, asked.nncodec)
    for kind, make in KINDS.items():
        coders = {name: coder for name, coder in known.items() if book.wants(f"{kind}/{name}")}
        if not coders:
            continue
        weights = make()
        given, entropy = symbols(weights)
        for name, coder in coders.items():
            found = coder(weights, given, asked.repeats)
            if found is None:
                continue
            row: dict[str, Any] = {
                "run": f"{kind}/{name}",
                "kind": kind,
                "coder": name,
                "weights": weights.size,
                "entropy": round(entropy, 4),
                "bits": round(8 * found["bytes"] / weights.size, 4),
                "bytes": found["bytes"],
                "encode_mb_s": _speed(weights, found.get("encode")),
                "decode_mb_s": _speed(weights, found.get("decode")),
                "repeats": asked.repeats,
            }
            book.add(row)
            speeds = f"{row['encode_mb_s'] or math.nan:8.1f} {row['decode_mb_s'] or math.nan:8.1f} MB/s"
            print(f"{kind:<20}{name:<10}{row['bits']:8.3f} bits (entropy {entropy:.3f}) {speeds}", flush=True)
    return book.close()


def _paring(weights: Floats, _: bytes, repeats: int) -> dict[str, Any]:
    tensor = torch.from_numpy(weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pare"
        encode = _best(lambda: write(path, [("weight", tensor)], {}), repeats)
        decode = _best(lambda: list(File(path, 1 << 62).tensors()), repeats)
        ((__, found),) = File(path, 1 << 62).tensors()
        if not torch.equal(found.view(torch.int32), tensor.view(torch.int32)):
            raise RuntimeError("what was decoded is not what was encoded")
        return {"bytes": path.stat().st_size, "encode": encode, "decode": decode}


def _zstd(_: Floats, given: bytes, repeats: int) -> dict[str, Any]:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("this benchmark needs the extra 'bench': pip install 'paring[bench]'") from error
    packer, unpacker = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    return _through(packer.compress, unpacker.decompress, given, repeats)


def _lzma(_: Floats, given: bytes, repeats: int) -> dict[str, Any]:
    return _through(lambda data: lzma.compress(data, preset=6), lzma.decompress, given, repeats)


def _through(
    pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], given: bytes, repeats: int
) -> dict[str, Any]:
    packed = pack(given)
    encode = _best(lambda: pack(given), repeats - 1)
    return {"bytes": len(packed), "encode": encode, "decode": _best(lambda: unpack(packed), repeats)}


def _huffman(_: Floats, given: bytes, repeats: int) -> dict[str, Any]:
    return {"bytes": math.ceil(huffman_bits(np.bincount(np.frombuffer(given, dtype=np.uint8))) / 8)}


def huffman_bits(counts: NDArray[np.int64]) -> int:
    """Length in bits of the Huffman code of symbols that occur so often; one bit each when there is only one."""
    heap = [int(count) for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def _nncodec(python: Path, weights: Floats, given: bytes, repeats: int) -> dict[str, Any] | None:
    if len(given) != weights.size:  # floats
        return None
    index = np.frombuffer(given, dtype=np.uint8).astype(np.int32)
    return nncodec.code(python, (index - np.bincount(index).argmax()).reshape(weights.shape), repeats)


Coder = Callable[[Floats, bytes, int], dict[str, Any] | None]
CODERS: dict[str, Coder] = {
    "paring": _paring,
    "zstd-19": _zstd,
    "lzma": _lzma,
    "Huffman": _huffman,
}


def _best(work: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest of some runs."""
    times = []
    for _ in range(max(1, repeats)):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def _speed(weights: Floats, seconds: float | None) -> float | None:
    return None if seconds is None else round(weights.nbytes / 1e6 / seconds, 1)


def _entropy(counts: NDArray[np.int64]) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())
