"""The python pickles of CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

Each file is a Python 2 pickle of a dict: b"data" is a byte array (N, 3072), a row being 1024 red, 1024 green and 1024
blue values, line by line; the classes are a list of ints.

A pickle can call anything, so this reader lets it call nothing: the three names of numpy that these files mention are
answered with a stand-in that only remembers what it is told, and every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paring.data.data_error import DataError
from paring.data.source import File
from paring.data.split import Split

_ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
_FAILURES = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError, ImportError, struct.error,
)  # fmt: skip


class _StandIn:
    """Answers for numpy's array, dtype and array maker: remembers arguments and state, runs nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *args: Any) -> _StandIn:
        made = _StandIn()
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"the pickle asks for {module}.{name}, which a CIFAR file has no use for; it was not run")
        return _StandIn()


def read_cifar(data: bytes, *, labels: bytes, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(images (N, 3, 32, 32), classes (N,)) in the bytes of one CIFAR file; the images are a read-only view.

    labels: the key of the classes in the file: b"labels", or b"fine_labels" in CIFAR-100. classes: how many there are.
    Raises DataError, having run nothing, for everything that is not such a file. A hostile pickle can still claim much
    memory, so `parts` gets only files whose md5 was checked.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _FAILURES as error:
        raise DataError(f"not a readable pickle: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or b"data" not in content or labels not in content:
        raise DataError(f"the pickle is not a dict with the keys {b'data'!r} and {labels!r}")
    x = _bytes(content[b"data"])
    y = content[labels]
    if not isinstance(y, list) or len(y) != len(x) or not all(type(k) is int and 0 <= k < classes for k in y):
        raise DataError(f"{labels!r} is not a list of {len(x)} classes from 0 to {classes - 1}")
    return x, np.array(y, dtype=np.int64)


def _bytes(array: Any) -> NDArray[np.uint8]:
    """The array that numpy would have made from the state (version, shape, dtype, column-major?, bytes)."""
    state = array.state if isinstance(array, _StandIn) else None
    match state:
        case (int(), (int(n), 3072), _StandIn(args=(b"u1" | b"|u1", *_)), bool(fortran), bytes(raw)) if n > 0:
            if len(raw) == n * 3072:
                rows = np.frombuffer(raw, dtype=np.uint8).reshape((n, 3072), order="F" if fortran else "C")
                return rows.reshape(n, 3, 32, 32)
            raise DataError(f"the images are {len(raw)} bytes, expected {n} x 3072")
    raise DataError(f"{b'data'!r} is not an array of unsigned bytes of shape (N, 3072)")


def parts(
    contents: Mapping[File, bytes], *, labels: bytes, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Split, Split]:
    """(train, test) from the files of CIFAR, the last being the test part.

    x is (N, 3, 32, 32): (value / 255 - mean) / std of each colour channel. Raises DataError for a wrong file.
    """
    batches = [_batch(file, data, labels, classes) for file, data in contents.items()]
    shift, scale = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (mean, std))

    def part(pieces: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> Split:
        x = np.empty((sum(len(images) for images, _ in pieces), 3, 32, 32), dtype=np.float32)
        np.divide(np.concatenate([images for images, _ in pieces]), np.float32(255), out=x)
        x -= shift
        x /= scale
        return Split(torch.from_numpy(x), torch.from_numpy(np.concatenate([y for _, y in pieces])))

    return part(batches[:-1]), part(batches[-1:])


def _batch(file: File, data: bytes, labels: bytes, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        x, y = read_cifar(data, labels=labels, classes=classes)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    if len(x) != file.count:
        raise DataError(f"{file.name} holds {len(x)} images, expected {file.count}")
    return x, y
