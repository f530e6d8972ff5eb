"""`load` by name: the digits, tiny sets, and the published ones when there is a copy."""

from __future__ import annotations

import gzip
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from paring.data import NAMES, Dataset, fetch, load, sets, status


def test_digits() -> None:
    data = load("digits")
    assert (data.name, data.classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1438, 0, 359]
    for part in (data.train, data.test):
        assert part.x.shape[1:] == (1, 8, 8)
        assert part.x.is_contiguous()
        assert (part.x.min().item(), part.x.max().item()) == (0, 1)
        assert torch.equal(part.x * 16, (part.x * 16).round())
    from sklearn.datasets import load_digits

    known = load_digits()
    ours = torch.cat([data.train.x, data.test.x]).flatten(1) * 16
    order = np.lexsort(ours.numpy().T), np.lexsort(known.data.T)
    np.testing.assert_array_equal(ours[order[0]].numpy(), known.data[order[1]])
    assert torch.cat([data.train.y, data.test.y]).bincount().tolist() == np.bincount(known.target).tolist()
    assert all(
        abs(n - total / 5) < 1 for n, total in zip(data.test.y.bincount(), np.bincount(known.target), strict=True)
    )


def test_the_test_part_and_the_digits_split_do_not_depend_on_the_seed() -> None:
    a, b, c = load("digits"), load("digits", validation=100, seed=1), load("digits", validation=0.1, seed=2)
    assert torch.equal(a.test.x, b.test.x)
    assert torch.equal(a.test.x, c.test.x)
    assert [len(b.train), len(b.validation)] == [1338, 100]
    assert [len(c.train), len(c.validation)] == [1438 - 144, 144]
    assert b.validation.x.is_contiguous()
    rows = {tuple(row) for row in a.train.x.flatten(1).tolist()}
    for data in (b, c):
        assert {tuple(row) for part in (data.train, data.validation) for row in part.x.flatten(1).tolist()} == rows
    again = load("digits", validation=100, seed=1)
    other = load("digits", validation=100, seed=2)
    assert torch.equal(again.validation.x, b.validation.x)
    assert not torch.equal(other.validation.x, b.validation.x)


def test_digits_of_a_scikit_learn_that_keeps_them_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = load("digits")
    monkeypatch.setattr("paring.data.digits.folder_of", lambda package: tmp_path)
    other = load("digits")
    for a, b in ((known.train, other.train), (known.test, other.test)):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install paring\[data\]"):
        load("digits")


def test_names(tiny: Path) -> None:
    assert NAMES == ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
    for spelling in ("cifar100", "CIFAR-100", "cifar_100"):
        assert load(spelling, root=tiny).name == "cifar100"
    assert fetch("digits") == ()
    for name in ("imagenet", "", "mnist2"):
        with pytest.raises(ValueError, match=f"no data set '{name}'; there are digits, mnist, fashion_mnist"):
            load(name)
    with pytest.raises(ValueError, match="no data set"):
        fetch("imagenet")


def test_everything_published_has_a_source_and_a_record() -> None:
    assert ("digits", *sets.SOURCES) == NAMES
    assert {record.name for record in status()} == set(NAMES)
    every = [f for s in sets.SOURCES.values() for f in (*s.files, *([s.archive] if s.archive else []))]
    assert len({file.md5 for file in every}) == len(every) == 18
    assert {len(file.md5) for file in every} == {32}
    assert all(home.endswith("/") for s in sets.SOURCES.values() for home in s.homes)


def test_tiny_sets_in_full(tiny: Path) -> None:
    for name, shape, classes in (("mnist", (1, 28, 28), 10), ("cifar100", (3, 32, 32), 100)):
        data = load(name, root=tiny, validation=5)
        assert (data.name, data.shape, data.classes) == (name, shape, classes)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [15, 5, 10]
        assert all(part.x.is_contiguous() for part in (data.train, data.validation, data.test))


@pytest.mark.parametrize("validation", [20, -1, 1.0, True])
def test_impossible_validation_parts_are_refused(tiny: Path, validation: float) -> None:
    with pytest.raises(ValueError, match=r"take|fraction"):
        load("mnist", root=tiny, validation=validation)


@pytest.mark.slow
def test_status_of_the_published_files(real: Path) -> None:
    records = [record for record in status(real) if record.path]
    assert records
    assert all(record.ok and record.size for record in records)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion-mnist", "fashion-mnist")])
def test_equals_numpys_reading_of_the_published_files(real: Path, name: str, folder: str) -> None:
    if not (real / folder).is_dir():
        pytest.skip(f"{real} has no {folder}")
    data = load(name, root=real, download=False)
    for part, prefix, count in ((data.train, "train", 60000), (data.test, "t10k", 10000)):
        pixels = np.frombuffer(
            gzip.decompress((real / folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:], "u1"
        )
        labels = np.frombuffer(
            gzip.decompress((real / folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:], "u1"
        )
        np.testing.assert_array_equal(part.y.numpy(), labels)
        expected = pixels.reshape(count, 1, 28, 28).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(part.x.numpy(), expected)


@pytest.mark.slow
def test_equals_numpys_reading_of_cifar10(real_cifar10: Path) -> None:
    data: Dataset = load("cifar10", root=real_cifar10, download=False)
    assert [len(data.train), len(data.test), *data.shape] == [50000, 10000, 3, 32, 32]
    assert data.train.y.bincount().tolist() == [5000] * 10
    assert data.test.y.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(data.train.x.mean((0, 2, 3)), torch.zeros(3), atol=3e-4, rtol=0)
    torch.testing.assert_close(data.train.x[::5].std((0, 2, 3)), torch.ones(3), atol=5e-3, rtol=0)
    found = next(real_cifar10.rglob("test_batch"), None)
    if found is None:
        pytest.skip("the pickles are only in the archive, whose members were checked by md5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = pickle.loads(found.read_bytes(), encoding="bytes")
    assert data.test.y.tolist() == plain[b"labels"]
    mean, std = (np.array(values)[:, None, None] for values in (sets.CIFAR10_MEAN, sets.CIFAR10_STD))
    expected = (plain[b"data"].reshape(-1, 3, 32, 32)[::10] / 255 - mean) / std
    np.testing.assert_allclose(data.test.x[::10].numpy(), expected, atol=1e-6)
