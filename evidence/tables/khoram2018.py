"""Khoram and Li 2018 (adaptive quantization): error against bytes of the file, for all compressors, and the ratio at zero loss.

LeNet-300-100 and LeNet-5-Caffe on MNIST without augmentation, 10,000 training examples held out for validation; every row is
decoded from its file before it is measured. A method's name up to the colon is the compressor, what follows its operating
point; `zero_loss` marks, for each network and compressor, the point with the fewest bytes that is no worse on validation data
by a paired bound (`evidence.tables.compression.mark_zero_loss`). Biases have 6 bits each throughout. Quoted: EPR (Oktay,
Ballé, Singh, Shrivastava, ICLR 2020, by the tutorial of its authors' library) and MIRACLE (Havasi, Peharz, Hernández-Lobato,
ICLR 2019), whose figures are bytes of files, too, and Deep Compression (Han, Mao, Dally, ICLR 2016, Table 1), which counts
codes, indices and codebooks. Their dense networks are others than ours (1.6 %, 0.7 %; 1.64 %, 0.80 %).

Combined: magnitudes are pruned gradually with masks (`GMP`), what computes nothing is removed, and codebooks of few values
with zeros kept are learned. "Gates first" trains L0 gates of units before that; "gates and entropy" lets the price of bits
decide which weights stay and which values they take, in place of masks and codebooks. These and entropy rounding follow the
outputs of the dense network as well (distillation, half of the loss at a temperature of 4). What learns does so at a rate of
3e-3, latents and gradual pruning at 5e-3: on validation better than the dense network's 1e-3, for baselines as well;
soft sharing, where it is worse, learns at 5e-4. "Hashed" at 1/8 has about the bytes of four learned values.

The second table has VGG-11 and a ConvNet4 with binary weights on CIFAR-10; it asks for a CUDA device (`--epochs 1` checks
it without). Binary weights have to come back as ±1, and are compared with one bit each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evidence.tables.compression import Compression, mark_zero_loss
from evidence.tables.table import Entry, Table
from paring import select
from paring.compression import (
    AdaptivePrecision,
    Codebooks,
    Combined,
    Compressor,
    DeepCompression,
    EntropyRounding,
    GridRounding,
    Hashed,
    KMeans,
    SoftSharing,
    Stage,
    Uniform,
)
from paring.core import Method
from paring.methods import GMP, L0, Binarize, Dense, Price
from paring.train import Recipe

VALIDATION = 10_000
DENSE = {
    "lenet_300_100": Recipe(epochs=30, batch=100, lr=1e-3, schedule="cosine"),
    "lenet5_caffe": Recipe(epochs=15, batch=100, lr=1e-3, schedule="cosine"),
}
EPOCHS = {"lenet_300_100": 1.0, "lenet5_caffe": 0.5}
DENSITIES = {"lenet_300_100": (0.06, 0.045), "lenet5_caffe": (0.015,)}
PRICES = {"lenet_300_100": (1e-6, 3e-6, 4.5e-6, 7e-6), "lenet5_caffe": (1e-6, 4e-6, 7e-6)}
GATED_PRICES = {"lenet_300_100": (4.5e-6, 7e-6), "lenet5_caffe": (4e-6, 7e-6, 2e-5)}
TEACHER: dict[str, Any] = {"share": 0.5, "temperature": 4.0}
N = 50_000
GATES = {
    "lenet_300_100": L0(
        price=Price(0.1 / N, layers=(("fc1", 0.1 / N), ("fc2", 0.1 / N), ("fc3", 0.3 / N))), at="inputs", keep=0.8
    ),
    "lenet5_caffe": L0(
        price=Price(0.4 / N, layers=(("conv1", 12 / N), ("conv2", 1.2 / N), ("fc1", 0.4 / N), ("fc2", 4 / N))),
        at=("units:Conv2d", "inputs:Linear"),
        keep=0.8,
    ),
}


def combined(density: float, epochs: float, gates: L0 | None = None, values: int = 7) -> Combined:
    """Prune (units by gates first, if asked), remove, share.

    Args:
        density: of the weights that are there when single weights are pruned.
        epochs: of pruning weights; gates train five eighths of it, codebooks a quarter.
        gates: for the units; None prunes weights alone.
        values: of each codebook, besides zero.
    """
    pruning = GMP(density=density, every=50, ramp=(0.0, 0.5), allocation=select.Global(least=1))
    first = () if gates is None else (Stage(gates, epochs=0.625 * epochs, lr=3e-3, drop_inputs=False),)
    books = Codebooks(values, keep_zeros=True, rounds=8, epochs=epochs / 32, mu=3e-3, growth=1.6, tune=epochs / 16)
    return Combined((*first, Stage(pruning, epochs=epochs, lr=5e-3)), books)


def entropy(price: float, unit: float) -> EntropyRounding:
    """A low price of a bit first, then this one.

    Args:
        price: of a bit.
        unit: a twelfth of the epochs at each price.
    """
    return EntropyRounding((1e-6, price) if price > 1e-6 else (price,), epochs=12 * unit, lr=5e-3)


def priced(price: float, unit: float, gates: L0) -> Combined:
    """Units by gates, then weights by the price of their bits alone.

    Args:
        price: of a bit.
        unit: a tenth of the epochs of the gates.
        gates: for the units.
    """
    return Combined((Stage(gates, epochs=10 * unit, lr=3e-3, drop_inputs=False),), entropy(price, unit))


def _points(model: str) -> Iterator[tuple[str, Compressor, dict[str, Any]]]:
    """Operating point, compressor, and what else the experiment is told."""
    unit, all_ = EPOCHS[model], model == "lenet_300_100"
    for bits in (8, 5, 4, 3, 2):
        yield f"uniform: {bits} bits", Uniform((bits,)), {}
    for size in (32, 16, 8, 4, 2):
        yield f"k-means: {size} values", KMeans((size,)), {}
    for step in (0.3, 0.7, 1.0, 1.5):
        yield f"rate-distortion grid: {step:g} rms", GridRounding((step,), (0.1,)), {}
    for increase in (0.0, 0.003, 0.01) if all_ else (0.0, 0.01):
        published = AdaptivePrecision(rounds=20)
        yield f"adaptive precision: +{increase:g}", published, {"increase": increase}
        retrained = replace(published, rounds=12, retrain=unit / 2)
        yield f"adaptive precision, retrained: +{increase:g}", retrained, {"increase": increase}
    for size in (16, 8, 4, 3, 2) if all_ else (8, 4, 2):
        books = Codebooks(size, rounds=8, epochs=unit, mu=3e-3, growth=1.6, tune=unit)
        yield f"codebooks: {size} values", books, {}
        if size == 4 and all_:
            yield f"codebooks, penalty alone: {size} values", replace(books, augmented=False), {}
            yield f"codebooks, one for all layers: {size} values", replace(books, scope="global"), {}
            yield f"codebooks, curvature: {size} values", replace(books, curvature=True), {}
            yield f"codebooks, rate: {size} values", replace(books, rate=0.02, zero=True), {}
    for stages in ((0.3, 0.1), (0.3, 0.1, 0.05)):
        pruned = DeepCompression(stages, epochs=3 * unit, tune=unit)
        yield f"deep compression: {100 * stages[-1]:g} %", pruned, {"small_bits": 0}
    for share in (1 / 8, 1 / 32, 1 / 64) if all_ else (1 / 8, 1 / 64):
        yield f"hashed: 1/{round(1 / share)}", Hashed((share,), epochs=12 * unit), {}
    for rate in (3e-7, 1e-6) if all_ else (3e-7,):
        yield f"soft sharing: {rate:g}", SoftSharing(rates=(rate,), epochs=15 * unit, lr=5e-4), {}
    for price in PRICES[model]:
        yield f"entropy rounding: {price:g}", entropy(price, unit), TEACHER
    for density in DENSITIES[model]:
        yield f"combined: {100 * density:g} %", combined(density, 16 * unit), TEACHER
        yield f"combined, gates first: {100 * density:g} %", combined(density, 16 * unit, GATES[model]), TEACHER
    for price in GATED_PRICES[model]:
        yield f"combined, gates and entropy: {price:g}", priced(price, unit, GATES[model]), TEACHER


def _entries(seed: int) -> list[Entry]:
    found = []
    for model, recipe in DENSE.items():
        given = replace(recipe, seed=seed)
        for label, compressor, told in _points(model):
            one = Compression(model, "mnist", Dense(), given, None, VALIDATION, compressor=compressor, lr=3e-3, **told)
            found.append(Entry(label, one))
    return found


_CIFAR = Recipe(
    epochs=160,
    batch=128,
    lr=0.05,
    optimizer="sgd",
    schedule="cosine",
    weight_decay=5e-4,
    crop=4,
    flip=True,
    device="cuda",
)
_BINARY = replace(_CIFAR, optimizer="adam", lr=1e-3, weight_decay=0.0)


def _cifar(seed: int) -> list[Entry]:
    learned = Codebooks(8, rounds=8, epochs=1.0, mu=3e-3, growth=1.6)
    vgg: tuple[tuple[str, Compressor], ...] = (
        ("uniform: 4 bits", Uniform((4,))),
        ("k-means: 16 values", KMeans((16,))),
        ("codebooks: 8 values", learned),
        ("codebooks: 4 values", replace(learned, values=4)),
        ("combined: 5 %", combined(0.05, 16.0)),
        ("combined: 2 %", combined(0.02, 16.0)),
    )
    binary: tuple[tuple[str, Compressor], ...] = (
        ("uniform: 4 bits", Uniform((4,))),
        ("k-means: 16 values", KMeans((16,))),
        ("adaptive precision: any", AdaptivePrecision(rounds=12)),
    )
    tasks: tuple[tuple[str, Method, Recipe, tuple[tuple[str, Compressor], ...]], ...] = (
        ("vgg11", Dense(), _CIFAR, vgg),
        ("convnet4", Binarize(weights="sign"), _BINARY, binary),
    )
    return [
        Entry(
            f"binary, {label}" if isinstance(method, Binarize) else label,
            Compression(
                model, "cifar10", method, replace(recipe, seed=seed), None, 5000, compressor=compressor, small_bits=0
            ),
        )
        for model, method, recipe, points in tasks
        for label, compressor in points
    ]


_QUOTED: tuple[tuple[str, str, int | None, float, float], ...] = (
    ("lenet_300_100", "EPR", 8_560, 124, 1.9),
    ("lenet5_caffe", "EPR", 2_840, 606, 1.0),
    ("lenet5_caffe", "MIRACLE: 555x", None, 555, 0.69),
    ("lenet5_caffe", "MIRACLE: 1110x", 1_520, 1110, 0.96),
    ("lenet_300_100", "deep compression, the paper's count", 27_000, 40, 1.58),
    ("lenet5_caffe", "deep compression, the paper's count", 44_000, 39, 0.74),
)
"""Network, method, bytes, ratio, error, as published."""

KHORAM = Table(
    "khoram2018",
    "error against bytes of the file, all compressors, MNIST",
    _entries,
    quoted=tuple(
        {"model": model, "data": "mnist", "method": name, "ratio": ratio, "error": error}
        | ({} if size is None else {"bytes": size})
        for model, name, size, ratio, error in _QUOTED
    ),
    seeds=5,
    after=mark_zero_loss,
)
KHORAM_CIFAR = Table(
    "khoram2018-cifar",
    "the same for VGG-11 and a binary network, CIFAR-10 (CUDA)",
    _cifar,
    seeds=3,
    after=mark_zero_loss,
)
