"""Every test here starts without PARING_DATA and with an empty cache; tiny published sets, and the real ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paring.data import sets, source
from paring.data.source import File, Source

REAL = os.environ.get("PARING_DATA")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of this test; no PARING_DATA."""
    monkeypatch.delenv("PARING_DATA", raising=False)
    monkeypatch.setattr(source, "cache", lambda: (tmp_path / "cache",))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder that PARING_DATA named when the tests started."""
    if not REAL:
        pytest.skip("PARING_DATA names no folder with the published files")
    return Path(REAL)


@pytest.fixture(scope="session")
def real_cifar10(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder below which CIFAR-10's pickles are; unpacked first when the data folder brings a script for that."""
    if source.locate(sets.SOURCES["cifar10"], real)[0]:
        return real
    script = real / "unpack_cifar.py"
    if not script.is_file():
        pytest.skip(f"no CIFAR-10 in {real}, and no unpack_cifar.py to make it")
    pytest.importorskip("PIL", reason="unpack_cifar.py needs Pillow")
    root = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, script, root / "cifar-10" / "cifar-10-batches-py"], check=True, capture_output=True)
    return root


def _idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _cifar(x: NDArray[np.uint8], labels: list[int], key: bytes = b"labels", fortran: bool = False) -> bytes:
    dtype = b"cnumpy\ndtype\n" + _short(b"u1") + b"K\0K\1\x87R(K\3" + _short(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    raw = x.tobytes("F" if fortran else "C")
    return b"".join([
        b"\x80\x02}(", _short(b"data"),
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85", _short(b"b"), b"\x87R",
        b"(K\1M", struct.pack("<H", x.shape[0]), b"M", struct.pack("<H", x.shape[1]), b"\x86", dtype, b"K\0tb",
        b"\x88" if fortran else b"\x89", b"T", struct.pack("<I", len(raw)), raw, b"tb",
        _short(key), b"](", b"".join(b"K" + bytes([y]) for y in labels), b"eu.",
    ])  # fmt: skip


@pytest.fixture
def idx() -> Callable[[NDArray[np.uint8]], bytes]:
    """Writes an array as an IDX file."""
    return _idx


@pytest.fixture
def cifar() -> Callable[..., bytes]:
    """Writes images (N, 3072) and a list of classes as Python 2 and numpy 1 pickled them for CIFAR."""
    return _cifar


def _publish(files: Mapping[str, tuple[bytes, int]], folder: Path) -> tuple[File, ...]:
    folder.mkdir(parents=True)
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return tuple(File(name, hashlib.md5(data).hexdigest(), count) for name, (data, count) in files.items())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A root with 20 + 10 random images as mnist and cifar100, which `paring.data` takes for the published ones."""
    rng = np.random.default_rng(0)
    root = tmp_path / "root"
    images, pickles = {}, {}
    for part, count in (("train", 20), ("t10k", 10)):
        x, y = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        images[f"{part}-images.gz"] = gzip.compress(_idx(x)), count
        images[f"{part}-labels.gz"] = gzip.compress(_idx(y)), count
    for part, count in (("train", 20), ("test", 10)):
        pixels, labels = rng.integers(0, 256, (count, 3072), np.uint8), np.arange(count) + 90 - count // 2
        pickles[part] = _cifar(pixels, labels.tolist(), b"fine_labels"), count
    mnist = Source(_publish(images, root / "mnist"), ("http://nowhere.invalid/",), ("mnist",))
    inside = "cifar-100-python"
    cifar = Source(
        _publish(pickles, root / inside), ("http://nowhere.invalid/",), ("cifar-100", ""), File("c.tar.gz", "0"), inside
    )
    monkeypatch.setattr(sets, "SOURCES", {"mnist": mnist, "cifar100": cifar})
    return root
