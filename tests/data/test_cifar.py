"""CIFAR pickles: read as numpy would read them, and nothing else that a pickle can do is done."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paring.data import DataError
from paring.data.cifar import parts, read_cifar
from paring.data.source import File

Writer = Callable[..., bytes]
X = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
Y = [0, 9, 3, 3, 1, 2]


@pytest.mark.parametrize("fortran", [False, True])
def test_equals_numpys_own_reading(cifar: Writer, fortran: bool) -> None:
    data = cifar(X, Y, fortran=fortran)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pickle names numpy.core
        plain = pickle.loads(data, encoding="bytes")
    x, y = read_cifar(data, labels=b"labels", classes=10)
    np.testing.assert_array_equal(x, plain[b"data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(x.reshape(6, -1), X)
    assert y.tolist() == plain[b"labels"] == Y
    assert (x.dtype.name, y.dtype.name) == ("uint8", "int64")


def test_cut_at_any_byte_is_refused(cifar: Writer) -> None:
    data = cifar(X, Y)
    start, end = data.index(X.tobytes()), data.index(X.tobytes()) + X.size
    for length in (*range(start + 2), (start + end) // 2, *range(end - 2, len(data))):
        with pytest.raises(DataError):
            read_cifar(data[:length], labels=b"labels", classes=10)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"data": evil}, lambda evil: [{0: evil}]])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, wrap: Callable[[Any], Any], protocol: int) -> None:
    mark = tmp_path / "was run"
    data = pickle.dumps(wrap(Call(os.system, f"touch '{mark}'")), protocol=protocol)
    with pytest.raises(DataError, match=rf"{os.name}\.system.*not run"):
        read_cifar(data, labels=b"labels", classes=10)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()  # it would have worked


@pytest.mark.parametrize("name", [(b"builtins", b"eval"), (b"numpy", b"load"), (b"numpy.core.multiarray", b"fromfile")])
def test_other_names_are_refused_even_numpys(name: tuple[bytes, bytes]) -> None:
    with pytest.raises(DataError, match=r"asks for \w+(\.\w+)+"):
        read_cifar(b"\x80\x02c" + name[0] + b"\n" + name[1] + b"\n.", labels=b"labels", classes=10)


def test_the_allowed_names_run_nothing() -> None:
    huge = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR."
    with pytest.raises(DataError, match="not a dict"):
        read_cifar(huge, labels=b"labels", classes=10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a readable pickle: EOFError"),
        (b"<html>no such page</html>", "not a readable pickle"),
        (pickle.dumps([1, 2], 2), "not a dict with the keys b'data' and b'labels'"),
        (b"\x80\x02}(U\x04dataK\1U\x06labels](K\1eu.", "b'data' is not an array"),
    ],
)
def test_other_pickles_say_what_was_expected(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_cifar(data, labels=b"labels", classes=10)


def test_wrong_arrays_and_labels_are_refused(cifar: Writer) -> None:
    def refuse(data: bytes, reason: str, classes: int = 10) -> None:
        with pytest.raises(DataError, match=reason):
            read_cifar(data, labels=b"labels", classes=classes)

    refuse(cifar(X[:, :3071], Y), r"shape \(N, 3072\)")
    refuse(cifar(X, Y).replace(b"U\x02u1", b"U\x02f4"), "unsigned bytes")
    refuse(cifar(X, Y).replace(b"M\x06\0", b"M\x07\0"), "18432 bytes, expected 7 x 3072")
    refuse(cifar(X[:0], []), "is not an array")
    refuse(cifar(X, Y[:5]), "list of 6 classes from 0 to 9")
    refuse(cifar(X, Y), "list of 6 classes from 0 to 8", classes=9)
    refuse(cifar(X, Y, key=b"fine_labels"), "keys b'data' and b'labels'")


def test_parts_standardise_every_colour(cifar: Writer) -> None:
    files = {File(name, "", 6): cifar(X, Y) for name in ("a", "b", "c")}
    train, test = parts(files, labels=b"labels", classes=10, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    assert (len(train), len(test)) == (12, 6)
    images = torch.from_numpy(X.reshape(-1, 3, 32, 32)).double() / 255
    expected = torch.stack([images[:, 0], (images[:, 1] - 0.5) / 0.5, (images[:, 2] - 1) / 2], dim=1)
    torch.testing.assert_close(test.x.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(train.x, torch.cat([test.x, test.x]))
    assert test.x.is_contiguous()
    assert train.y.tolist() == Y * 2
    with pytest.raises(DataError, match="a holds 6 images, expected 7"):
        parts({File("a", "", 7): cifar(X, Y)}, labels=b"labels", classes=10, mean=(0, 0, 0), std=(1, 1, 1))
