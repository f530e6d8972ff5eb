"""The data sets by name: what is published where, `load`, `fetch` and `status`.

| name | train + test | shape | classes | values |
|---|---|---|---|---|
| digits | 1,438 + 359 | (1, 8, 8) | 10 | [0, 1] |
| mnist, fashion_mnist | 60,000 + 10,000 | (1, 28, 28) | 10 | [0, 1], not standardised |
| cifar10, cifar100 | 50,000 + 10,000 | (3, 32, 32) | 10, 100 | standardised per colour channel |

CIFAR is standardised as (value / 255 - mean) / std, with mean and std of each colour over all pixels of its 50,000
training images, rounded to four digits. They are constants, so that they do not change with the validation part.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from paring.data import cifar, digits, idx
from paring.data.data_error import DataError
from paring.data.source import File, Source, ensure, locate, read, verified
from paring.data.split import Dataset, Split, stratified

SIZES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
"""Name -> shape of an example (C, H, W), and number of classes."""
NAMES = tuple(SIZES)

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

SOURCES = {
    "mnist": Source(
        files=(
            File("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 60000),
            File("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 60000),
            File("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 10000),
            File("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 10000),
        ),
        homes=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        folders=("mnist", "MNIST", "MNIST/raw"),
    ),
    "fashion_mnist": Source(
        files=(
            File("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 60000),
            File("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 60000),
            File("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 10000),
            File("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 10000),
        ),
        homes=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        folders=("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
    ),
    "cifar10": Source(
        files=(
            File("data_batch_1", "c99cafc152244af753f735de768cd75f", 10000),
            File("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", 10000),
            File("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", 10000),
            File("data_batch_4", "634d18415352ddfa80567beed471001a", 10000),
            File("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", 10000),
            File("test_batch", "40351d587109b95175f43aff81a1287e", 10000),
        ),
        homes=("https://www.cs.toronto.edu/~kriz/",),
        folders=("cifar-10", "cifar10", ""),
        archive=File("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        inside="cifar-10-batches-py",
    ),
    "cifar100": Source(
        files=(
            File("train", "16019d7e3df5f24257cddd939b257f8d", 50000),
            File("test", "f0ef6b0ae62326f3e7ffdfab6717acfc", 10000),
        ),
        homes=("https://www.cs.toronto.edu/~kriz/",),
        folders=("cifar-100", "cifar100", ""),
        archive=File("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        inside="cifar-100-python",
    ),
}


@dataclass(frozen=True)
class Record:
    """One file of a data set as `status` finds it: `path` and `size` in bytes are None when there is none.

    ok: there and the published one. problem: what is wrong, "" when ok.
    """

    name: str
    file: str
    path: Path | None
    size: int | None
    ok: bool
    problem: str


def load(
    name: str,
    *,
    validation: int | float = 0,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """The data set `name` (one of `NAMES`), whole, as CPU tensors.

    validation: examples taken from the training part for a validation part: a number of them, or a fraction in (0, 1);
    every class gives its share, to within one example. The test part is never touched. seed: decides which.
    root: the folder to look in, instead of the one that the environment variable PARING_DATA names; the cache is looked
    in next. download: whether to fetch what is not there, into the cache.

    Raises ValueError for an unknown name or a validation part that cannot be; DataError when files are missing, not the
    published ones (md5) or cannot be downloaded; ImportError when scikit-learn is missing for the digits.
    """
    name = _name(name)
    train, test = digits.parts() if name == "digits" else _published(name, root, download)
    train, held = stratified(train, validation, seed)
    channels, height, width = train.x.shape[1:]
    return Dataset(name, train, held, test, SIZES[name][1], (channels, height, width))


def fetch(name: str, *, root: str | Path | None = None) -> tuple[Path, ...]:
    """Download what is missing of the data set `name` and check all of it; where its files are (none for the digits).

    Raises as `load` does.
    """
    name = _name(name)
    if name == "digits":
        return ()
    paths = ensure(name, SOURCES[name], root, download=True)
    for file, path in paths.items():
        verified(file, path)
    return tuple(paths.values())


def status(root: str | Path | None = None) -> tuple[Record, ...]:
    """What is there of every data set, without downloading: a record for each file. Reads and checks all of them."""
    there = importlib.util.find_spec("sklearn") is not None
    problem = "" if there else "scikit-learn is not installed: run `pip install paring[data]`"
    records = [Record("digits", "scikit-learn", None, None, there, problem)]
    for name, source in SOURCES.items():
        paths, missing = locate(source, root)
        for file, path in paths.items():
            problem = ""
            try:
                verified(file, path)
            except DataError as error:
                problem = str(error)
            records.append(Record(name, file.name, path, path.stat().st_size, not problem, problem))
        records += [Record(name, file.name, None, None, False, "not found") for file in missing]
    return tuple(records)


def _name(name: str) -> str:
    spelled = {known.replace("_", ""): known for known in NAMES}
    known = spelled.get(name.lower().replace("-", "").replace("_", ""))
    if known is None:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(NAMES)}")
    return known


def _published(name: str, root: str | Path | None, download: bool) -> tuple[Split, Split]:
    source = SOURCES[name]
    contents = read(source, ensure(name, source, root, download=download))
    if name == "cifar10":
        return cifar.parts(contents, labels=b"labels", classes=10, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    if name == "cifar100":
        return cifar.parts(contents, labels=b"fine_labels", classes=100, mean=CIFAR100_MEAN, std=CIFAR100_STD)
    return idx.parts(contents)
