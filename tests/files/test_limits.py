"""What a file may ask for is bounded, and the bounds stay where the format's page says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paring.files.pare import container
from paring.files.pare.container import File, decodes_to, write
from paring.files.pare.error import PareError
from paring.files.pare.header import most_pieces, packed


def zeros(path: Path, count: int) -> Path:
    write(path, [("a", torch.zeros(count, dtype=torch.uint8))], {})
    return path


def test_sixteen_mebibytes_are_free(tmp_path: Path) -> None:
    assert File(zeros(tmp_path / "a", 1 << 24)).size < 1000
    with pytest.raises(PareError, match="would decode to 16,777,217 bytes, more than the 16,777,216 allowed"):
        File(zeros(tmp_path / "b", (1 << 24) + 1))


def test_beyond_that_two_thousand_times_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "FREE_BYTES", 0)
    size = File(zeros(tmp_path / "a", 10)).size
    assert File(zeros(tmp_path / "b", 1900 * size)).size <= size + 10
    with pytest.raises(PareError, match="would decode to"):
        File(zeros(tmp_path / "c", 2200 * size))


def test_large_files_decode_to_thirty_two_times_their_size() -> None:
    mebi = 1 << 20
    assert [decodes_to(size) for size in (0, 100_000, 150_000)] == [16 * mebi, 200_000_000, 256 * mebi]
    assert [decodes_to(size * mebi) for size in (1, 8, 9, 100)] == [256 * mebi, 256 * mebi, 288 * mebi, 3200 * mebi]


def test_a_header_may_be_a_mebibyte_and_sixty_four_times_what_it_takes() -> None:
    assert len(packed([], "a" * 1_050_000)) < 2_000
    with pytest.raises(PareError, match="the header would take"):
        packed([], "a" * 1_250_000)
    size = 1 << 23
    noisy = {ratio: np.random.default_rng(0).bytes(size // ratio).hex() for ratio in (75, 100)}
    packed([], noisy[75] + "a" * (size - len(noisy[75])))
    with pytest.raises(PareError, match="the header would take"):
        packed([], noisy[100] + "a" * (size - len(noisy[100])))


def test_sixteen_thousand_tensors_are_free_and_sixty_four_bytes_each_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (most_pieces(0), most_pieces(1 << 20), most_pieces((1 << 20) + 64)) == (16384, 16384, 16385)
    monkeypatch.setattr("paring.files.pare.header.FREE_PIECES", 20)
    empty = torch.zeros(0)
    write(tmp_path / "a", ((f"{n}", empty) for n in range(20)), {})
    assert len(File(tmp_path / "a").entries) == 20
    with pytest.raises(PareError, match=r"21 tensors in .* bytes are more than a reader accepts"):
        write(tmp_path / "b", ((f"{n}", empty) for n in range(21)), {})
    monkeypatch.setattr("paring.files.pare.header.FREE_PIECES", 19)
    with pytest.raises(PareError, match="it says that it holds 20 tensors"):
        File(tmp_path / "a")
    write(tmp_path / "c", ((f"{n}", torch.randn(20)) for n in range(30)), {})
    assert len(File(tmp_path / "c").entries) == 30
