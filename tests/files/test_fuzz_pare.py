"""Hostile .pare files: one PareError, or what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.files import File, PareError, unpack
from paring.testing.fuzz import campaign, sown
from paring.testing.fuzz.pare_format import LARGEST, Pare, forged, good, taken_apart

GOOD = good()


def attempt(data: bytes, path: Path) -> bool:
    """Read a file of these bytes; whether it gave tensors. Any other error than `PareError` goes through."""
    path.write_bytes(data)
    try:
        for _ in File(path, max_bytes=LARGEST).tensors():
            pass
    except PareError:
        return False
    return True


def test_the_good_file_is_good(tmp_path: Path) -> None:
    header, bodies = taken_apart(GOOD)
    kinds = {tensor["kind"] for section in header["sections"] for tensor in section["tensors"]}
    assert kinds == {"raw", "planes", "sparse", "table", "mixed"}
    assert attempt(GOOD, tmp_path / "a")
    assert attempt(forged(json.dumps(header).encode(), bodies), tmp_path / "a")


def test_many_changes() -> None:
    counts = campaign(Pare(), cases=300)
    assert not counts.failing
    assert min(counts.outcomes[name] for name in ("read whole", "read as other numbers", "refused")) > 5


def test_planted_code_in_every_field_is_left_alone() -> None:
    counts = sown(Pare(), every=101)
    assert not counts.failing
    assert counts.outcomes["refused"] > 50


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.binary(max_size=400), st.binary(max_size=100))
def test_any_header_and_any_section(tmp_path_factory: pytest.TempPathFactory, text: bytes, body: bytes) -> None:
    assert not attempt(forged(text, [body]), tmp_path_factory.getbasetemp() / "case.pare")


def test_nothing_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(PareError):
        unpack(None, tmp_path / "b")
