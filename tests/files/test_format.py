"""What the writer writes is what FORMAT.md says: a reader in plain Python, made from it, finds the same numbers."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from paring.files import File, write
from paring.files.pare import container, levels, mixed, mixing
from paring.files.pare.dictionary import DICTIONARY
from paring.files.pare.logs import log2, log2s
from tests.reference import pare_reader


def smooth(steps: int, lanes: int, seed: int) -> NDArray[np.float64]:
    """A matrix whose neighbours along the second axis are alike."""
    noise = np.random.default_rng(seed).normal(size=(lanes, steps + 8))
    return np.stack([noise[:, k : k + steps] for k in range(8)]).mean(0) * math.sqrt(8)


def pruned(steps: int, lanes: int, density: float, seed: int = 0) -> NDArray[np.float32]:
    dense = smooth(steps, lanes, seed)
    kept = np.abs(dense) > np.quantile(np.abs(dense), 1 - density)
    return np.where(kept, dense, 0).astype(np.float32)


def some() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sparse = torch.from_numpy(pruned(150, 90, 0.1))
    signs = torch.from_numpy(np.sign(smooth(40, 20, 1)).astype(np.float32))
    return {
        "mixed": (2 * sparse).round() / 2 * 0.3,
        "mixed int8": (2 * sparse).round().to(torch.int8),
        "sparse": sparse,
        "sparse half": sparse.half().float(),
        "binary": signs * 0.37,
        "binary rows": signs * torch.rand(20, 1, generator=generator),
        "grid": torch.randint(-90, 90, (60,), generator=generator) * 0.01,
        "halved grid": (torch.randint(-90, 90, (60,), generator=generator) * torch.tensor(0.01).half().float())
        .half()
        .float(),
        "classes": torch.randn(30, 1, generator=generator).sign()
        * (torch.rand(30, 20, generator=generator) * 3).round(),
        "table": torch.tensor([0.1, -0.0, 0.0, float("nan")]).repeat(40),
        "planes": torch.randn(700, generator=generator),
        "kernel": torch.from_numpy(pruned(9 * 5, 16, 0.3)).reshape(16, 5, 3, 3).sign(),
        "counter": torch.tensor(12),
        "empty": torch.zeros(0, 4),
        "flags": torch.rand(100, generator=generator) < 0.1,
    }


def patterns(tensor: Tensor) -> list[int]:
    width = tensor.element_size()
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def test_the_plain_reader_finds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.pare"
    write(path, some().items(), {"note": 1})
    found, manifest = pare_reader.read(path.read_bytes(), DICTIONARY)
    assert manifest == {"note": 1}
    assert list(found) == list(some())
    for name, tensor in some().items():
        assert found[name] == (list(tensor.shape), patterns(tensor)), name
    codes = {entry.name: entry.codes[0] for entry in File(path).entries}
    kinds = {name: (code.kind, code.levels, code.half) for name, code in codes.items()}
    assert kinds["mixed"][0] == kinds["mixed int8"][0] == "mixed"
    assert (kinds["sparse"], kinds["sparse half"]) == (("sparse", "table", False), ("sparse", "table", True))
    assert kinds["binary rows"][1] == "rows"
    assert (kinds["grid"][1:], kinds["halved grid"][1:]) == (("grid", False), ("grid", True))
    assert codes["classes"].classes > 1


def test_pieces_of_large_tensors_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "PIECE", 1000)
    monkeypatch.setattr(container, "SECTION", 2500)
    write(tmp_path / "a.pare", some().items(), {})
    found, _ = pare_reader.read((tmp_path / "a.pare").read_bytes(), DICTIONARY)
    decoded = dict(File(tmp_path / "a.pare").tensors())
    assert len(File(tmp_path / "a.pare").entries) == len(some())
    assert max(len(entry.codes) for entry in File(tmp_path / "a.pare").entries) > 10
    for name, tensor in some().items():
        assert found[name] == (list(tensor.shape), patterns(tensor)), name
        assert patterns(decoded[name]) == patterns(tensor)


def test_the_dictionary_is_the_one_of_the_format() -> None:
    text = Path(container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
    found = re.search(r"CRC-32 is 0x([0-9a-f]{8})", text)
    assert found is not None
    assert int(found[1], 16) == zlib.crc32(DICTIONARY)


def test_no_table_hangs_on_the_last_bit_of_a_library() -> None:
    """Rounded tables are the same everywhere when no entry is near a half."""
    odds = [2.0**24 / (1 + 2.0 ** (-x / 256)) for x in range(-4096, 4097)]
    logs = [65536 * math.log2(1 + m / 4096) for m in range(4096)]
    assert min(abs(value % 1 - 0.5) for value in odds + logs) > 1e-6
    assert [int(value * 2**24) for value in mixing.SQUASH] == [round(value) for value in odds]


def test_logarithms() -> None:
    numbers = [*range(1, 10_000), 2**40 + 12345, 2**52 + 1]
    found = log2s(np.array(numbers)).tolist()
    assert found == [log2(n) for n in numbers]
    assert max(abs(a / 65536 - math.log2(n)) for a, n in zip(found, numbers, strict=True)) < 4e-4


def size(tensor: Tensor, path: Path) -> int:
    write(path, [("a", tensor)], {})
    assert patterns(dict(File(path).tensors())["a"]) == patterns(tensor)
    return path.stat().st_size


def test_binary_weights_cost_a_bit_or_less(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(200, 300, generator=generator).sign()
    assert size(signs, tmp_path / "a") < 1.01 * signs.numel() / 8 + 60
    scaled = signs * torch.rand(200, 1, generator=generator).clamp(min=0.1)
    assert size(scaled, tmp_path / "a") < 1.01 * signs.numel() / 8 + 4 * 200 + 80
    assert dict(File(tmp_path / "a").tensors())["a"].abs().unique(dim=1).shape == (200, 1)
    skewed = torch.where(torch.rand(200, 300, generator=generator) < 0.05, -1.0, 1.0) * scaled.abs()
    assert size(skewed, tmp_path / "a") < 1.03 * 0.2864 * signs.numel() / 8 + 4 * 200 + 80


def test_integer_grids_per_row_take_their_entropy(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    levels_ = torch.randint(-7, 8, (100, 200), generator=generator)
    tensor = levels_ * (torch.rand(100, 1, generator=generator) + 0.1)
    assert size(tensor, tmp_path / "a") < 1.01 * math.log2(15) * tensor.numel() / 8 + 4 * 100 + 100


def test_neighbours_pay(tmp_path: Path) -> None:
    """Where survivors and signs go with their neighbours, the mixed code is well below independent symbols."""
    matrix = np.sign(pruned(784, 100, 0.05))
    symbols = (matrix + 1).astype(np.int64)
    share = np.bincount(symbols.reshape(-1)) / symbols.size
    independent = -(share * np.log2(share)).sum() * symbols.size / 8
    assert size(torch.from_numpy(matrix), tmp_path / "a") < 0.8 * independent


@pytest.mark.parametrize("coded", [False, True])
def test_fitted_weights_beat_their_neighbours(coded: bool) -> None:
    """The fit is a minimum of the length of the code."""
    matrix = pruned(120, 200, 0.2).T
    plane = (matrix > 0).astype(np.int32)
    mask = matrix != 0 if coded else None
    features, ones = mixing.features((1, 2, 3), plane, mask)
    weights, _ = mixing.fit(features, ones)
    from paring.files.pare.entropy import binary_bits

    least = binary_bits(ones, mixing.chances(features, weights))
    for row in range(len(weights)):
        for step in (-60, 60):
            moved = weights.copy()
            moved[row] += step
            assert binary_bits(ones, mixing.chances(features, moved)) > least - 1.0


def test_too_many_steps_are_not_mixed() -> None:
    assert mixed.allowed(4096, 1)
    assert not mixed.allowed(5000, 5000)
    assert levels.find(np.zeros((3, 0), dtype=np.uint32)) is None
