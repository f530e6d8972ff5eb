"""Hostile files: one PareError, within a second, in bounded memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.codec import PareError, unpack
from paring.testing.fuzz_pare import attempt, broken, forged, good, taken_apart

GOOD = good()


def test_the_good_file_is_good(tmp_path: Path) -> None:
    header, bodies = taken_apart(GOOD)
    kinds = {tensor["kind"] for section in header["sections"] for tensor in section["tensors"]}
    assert kinds == {"raw", "planes", "sparse", "table", "mixed"}
    assert attempt(GOOD, tmp_path / "a")
    assert attempt(forged(json.dumps(header).encode(), bodies), tmp_path / "a")


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(0, 1 << 30))
def test_changes_behind_right_checksums(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    started = time.process_time()
    attempt(broken(GOOD, seed), tmp_path_factory.getbasetemp() / "case.pare")
    assert time.process_time() - started < 2.0


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.binary(max_size=400), st.binary(max_size=100))
def test_any_header_and_any_section(tmp_path_factory: pytest.TempPathFactory, text: bytes, body: bytes) -> None:
    assert not attempt(forged(text, [body]), tmp_path_factory.getbasetemp() / "case.pare")


def test_memory_stays_bounded(tmp_path: Path) -> None:
    attempt(GOOD, tmp_path / "a")
    tracemalloc.start()
    for seed in range(40):
        attempt(broken(GOOD, seed), tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 27


def test_some_changes_are_noticed_and_some_are_other_numbers(tmp_path: Path) -> None:
    found = [attempt(broken(GOOD, seed), tmp_path / "a") for seed in range(40)]
    assert 0 < sum(found) < 40
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(PareError):
        unpack(tmp_path / "b")
