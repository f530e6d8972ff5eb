"""Files and tensors that are meant, or happen, to break readers and writers: each ends in one clear error, at once."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.files import File
from paring.files.pare import arrays, container
from paring.files.pare.dictionary import DICTIONARY
from paring.files.pare.header import packed, parsed
from paring.files.pare.mixed import BYTES_PER_STEP, FREE_STEPS


def crafted(path: Path, sections: list[dict[str, Any]], body: bytes = b"") -> Path:
    """A file whose checksums are right, whatever its header says."""
    start = container.MAGIC + bytes([container.VERSION])
    header = packed(sections, {"version": 1, "ties": {}, "modules": {}})
    tail = struct.pack("<II", len(header), zlib.crc32(header, zlib.crc32(start)))
    parts = b"".join(body + struct.pack("<I", zlib.crc32(body)) for _ in sections)
    path.write_bytes(start + parts + header + tail)
    return path


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(pr.PareError, match="cannot be read: it is a folder, a pipe"):
            pr.unpack(None, path)


def test_small_files_that_would_take_minutes_are_refused(tmp_path: Path) -> None:
    one = {"shape": [4096, 1], "kind": "mixed", "values": 2}
    sections = [{"length": 0, "side": 0, "tensors": [{"name": f"{n}", **one} for n in range(40)]}]
    path = crafted(tmp_path / "a.pare", sections)
    began = time.process_time()
    with pytest.raises(pr.PareError, match="would take long"):
        pr.unpack(None, path)
    assert time.process_time() - began < 1
    assert path.stat().st_size < 2000


def test_a_writer_keeps_to_the_steps_that_a_reader_allows(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number in range(12):  # what is there goes with its neighbours, as in a layer that looks at images
        smooth = torch.randn(24, 1208, generator=generator).unfold(1, 9, 1).mean(2)
        tensors[f"{number}"] = (smooth > smooth.quantile(0.9)).float() * 0.5
    pr.pack(tensors, tmp_path / "a.pare")
    file = File(tmp_path / "a.pare")
    kinds = [code.kind for entry in file.entries for code in entry.codes]
    assert "mixed" in kinds
    assert set(kinds) != {"mixed"}, "the later ones would be too many"
    steps = sum(arrays.steps(code, entry.shape) for entry in file.entries for code in entry.codes)
    assert steps <= FREE_STEPS + 12 * 24 * 1200 * 4 // BYTES_PER_STEP
    found = pr.unpack(None, tmp_path / "a.pare")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("levels", [True, False])
def test_a_small_last_piece_does_not_inherit_more_steps_than_it_may_have(tmp_path: Path, levels: bool) -> None:
    """A large sparse tensor is cut into pieces that share a plan; the last one has few rows."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(480, 4608 + 8, generator=generator).unfold(1, 9, 1).mean(2)
    weight = torch.where(smooth.abs() > 0.6, smooth, 0.0)
    weight = weight.sign() if levels else weight
    pr.pack({"a": weight}, tmp_path / "a.pare")
    codes = [code.kind for entry in File(tmp_path / "a.pare").entries for code in entry.codes]
    assert len(codes) == 2
    assert codes[0] == ("mixed" if levels else "sparse")
    assert torch.equal(pr.unpack(None, tmp_path / "a.pare")["a"], weight + 0.0)


@pytest.mark.parametrize(
    "piece",
    [
        {"shape": [4, 4], "kind": "mixed", "values": 1},
        {"shape": [1 << 39, 0, 1 << 39], "kind": "raw"},
        {"shape": [1 << 39, 1 << 39], "kind": "raw"},
    ],
)
def test_descriptions_that_make_no_sense(tmp_path: Path, piece: dict[str, Any]) -> None:
    path = crafted(tmp_path / "a.pare", [{"length": 8, "side": 8, "tensors": [{"name": "a", **piece}]}], bytes(8))
    with pytest.raises(pr.PareError):
        pr.unpack(None, path, max_bytes=1 << 62)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_negative_zero_of_every_width(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.5, -2.0, -0.0, 0.0, float("nan")]).to(dtype)
    for signed in (False, True):
        pr.pack({"a": tensor}, tmp_path / "a.pare", signed_zeros=signed)
        found = pr.unpack(None, tmp_path / "a.pare")["a"]
        assert found.dtype == dtype
        assert found.float()[:4].tolist() == [1.5, -2.0, 0.0, 0.0]
        assert bool(found.float().signbit()[2]) == signed


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushing")
def test_denormal_numbers_survive_arithmetic_that_flushes_them(tmp_path: Path) -> None:
    tiny = torch.tensor([-(2**31) + 5, 5, 10, 15] * 100, dtype=torch.int32)
    for name, given in (("floats", tiny.view(torch.float32)), ("integers", torch.arange(300, dtype=torch.int32))):
        pr.pack({name: given}, tmp_path / "a.pare")
        assert torch.equal(pr.unpack(None, tmp_path / "a.pare")[name].view(torch.int32), given.view(torch.int32))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"a": torch.empty(3, device="meta")}, "meta device"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fnuz)}, "float8_e4m3fnuz"),
        ({1: torch.ones(2)}, "names are text"),
        (nn.LazyLinear(3), "has no shape yet"),
    ],
    ids=["meta", "float8", "number", "lazy"],
)
def test_what_cannot_be_packed_is_said(tmp_path: Path, given: Any, why: str) -> None:
    with pytest.raises(pr.PareError, match=why):
        pr.pack(given, tmp_path / "a.pare")
    assert not list(tmp_path.iterdir())


def test_views_of_other_types_are_not_ties(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("floats", torch.tensor([1.0, 2.0]))
            self.register_buffer("bits", self.get_buffer("floats").view(torch.int32))

    net = Two()
    pr.pack(net, tmp_path / "a.pare")
    found = pr.unpack(Two, tmp_path / "a.pare")
    assert found.get_buffer("bits").dtype == torch.int32
    assert torch.equal(found.get_buffer("bits"), net.get_buffer("bits"))


def test_headers_that_swell_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    """Thirty megabytes of brackets would be a gigabyte of empty lists."""
    packer = zlib.compressobj(0, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    header = packer.compress(b'{"sections":[],"manifest":[' + b"[]," * 10_000_000 + b"0]}") + packer.flush()
    began = time.process_time()
    with pytest.raises(pr.PareError, match="its header is more than 2,097,152 values"):
        parsed(header, len(header))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("manifest", [{"a": float("nan")}, {"a": [0] * 2_100_000}, {"a": float("inf")}])
def test_a_writer_writes_no_header_that_a_reader_refuses(manifest: object, tmp_path: Path) -> None:
    with pytest.raises(pr.PareError, match="which no reader accepts"):
        container.write(tmp_path / "a.pare", [("a", torch.ones(2))], manifest)
    assert not list(tmp_path.iterdir())
