"""The codec benchmark: its kinds are what they say, and its Huffman length is the optimal one."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evidence.benches import codec
from evidence.benches.book import Asked
from paring.cli.results import load


def test_huffman_lengths() -> None:
    assert codec.huffman_bits(np.array([5])) == 5
    assert codec.huffman_bits(np.array([4, 2, 1, 1])) == 4 + 2 * 2 + 3 + 3
    counts = np.random.default_rng(0).integers(1, 1000, 50)
    share = counts / counts.sum()
    entropy = -(share * np.log2(share)).sum() * counts.sum()
    assert entropy <= codec.huffman_bits(counts) <= entropy + counts.sum()


def test_rows_hold_bits_and_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "ROWS", 64)
    monkeypatch.setattr(codec, "COLUMNS", 96)
    monkeypatch.setattr(codec, "CODERS", {name: codec.CODERS[name] for name in ("paring", "lzma", "Huffman")})
    path = codec.run(Asked(results=tmp_path, repeats=1))
    rows = load(path).rows
    assert len(rows) == 3 * len(codec.KINDS)
    ours = {row["kind"]: row for row in rows if row["coder"] == "paring"}
    assert ours["±s per row"]["bits"] < 1.6
    assert ours["16 values"]["entropy"] == pytest.approx(4.0, abs=0.01)
    assert all(row["encode_mb_s"] > 0 for row in ours.values())
    assert ours["8-bit grid per row"]["entropy"] < 8
    order = [row["kind"] for row in rows]
    assert sum(a != b for a, b in pairwise(order)) == len(codec.KINDS) - 1


def test_nncodec_gets_centred_integers_and_no_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def code(python: Path, levels: np.ndarray, repeats: int) -> dict[str, float]:
        seen.append(levels)
        return {"bytes": 10, "encode": 1.0, "decode": 1.0}

    monkeypatch.setattr(codec, "ROWS", 64)
    monkeypatch.setattr(codec, "COLUMNS", 96)
    monkeypatch.setattr(codec, "CODERS", {})
    monkeypatch.setattr(codec.nncodec, "code", code)
    path = codec.run(Asked(results=tmp_path, repeats=1, nncodec=Path("python")))
    kinds = [row["kind"] for row in load(path).rows]
    many = ("floats", "groups")  # of more than 256 values
    assert kinds == [kind for kind in codec.KINDS if not any(word in kind for word in many)]
    shared = seen[kinds.index("5 %, 8 values")]
    assert shared.shape == (64, 96)
    assert np.array_equal(shared == 0, codec.shared() == 0)
    assert (np.sign(shared) == np.sign(codec.shared())).all()


def test_nncodec_that_is_not_there_is_said(tmp_path: Path) -> None:
    levels = np.zeros((4, 4), dtype=np.int32)
    with pytest.raises(RuntimeError, match="cannot be run"):
        codec.nncodec.code(tmp_path / "python", levels, 1)
    with pytest.raises(RuntimeError, match="nncodec is not installed"):
        codec.nncodec.code(Path(sys.executable), levels, 1)
