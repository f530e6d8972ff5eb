"""The container: everything comes back bit for bit, and nothing damaged is read."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.files.pare import container
from paring.files.pare.container import VERSION, File, write
from paring.files.pare.dictionary import DICTIONARY
from paring.files.pare.entropy import Encoder
from paring.files.pare.error import PareError
from paring.files.pare.header import LARGEST_HEADER

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(40, 30, generator=generator)
    return {
        "dense": dense,
        "sparse": (dense * 4).round() * (dense > 0.8) + 0.0,
        "signs": dense.sign().to(torch.int8),
        "half": dense.half(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "odd": torch.tensor([float("nan"), -0.0, 0.0, float("inf"), 1e-45]),
        "flags": dense > 0,
        "large": torch.randn(200, 100, generator=generator),
    }


def raw(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and raw(a[n]) == raw(b[n]) for n in a
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.pare"
    write(path, some_tensors().items(), {"note": "hello", "ties": {"a": "b"}})
    return path


def test_everything_comes_back(file: Path) -> None:
    found = File(file)
    assert found.manifest == {"note": "hello", "ties": {"a": "b"}}
    assert same(dict(found.tensors()), some_tensors())
    assert [e.name for e in found.entries] == list(some_tensors())


def test_the_same_input_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "again.pare", some_tensors().items(), {"ties": {"a": "b"}, "note": "hello"})
    assert file.read_bytes() == (tmp_path / "again.pare").read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_tensor_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("any") / "a.pare"
    tensors = {}
    for number in range(data.draw(st.integers(0, 3))):
        shape = tuple(data.draw(st.lists(st.integers(0, 12), max_size=4)))
        dtype = data.draw(st.sampled_from(DTYPES))
        alphabet = data.draw(st.sampled_from([1, 2, 3, 17, 256]))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
        skew = data.draw(st.sampled_from([1, 4]))
        symbols = (torch.rand(shape, generator=generator) ** skew * alphabet).floor() - alphabet // 2
        tensors[f"t{number}"] = symbols.to(dtype)
    write(path, tensors.items(), {})
    assert same(dict(File(path).tensors()), tensors)


@pytest.mark.slow
def test_cut_off_at_every_byte_is_refused(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    lengths = [*range(0, 200), *range(200, len(data), 97), *range(len(data) - 100, len(data))]
    for length in lengths:
        broken = tmp_path / "cut.pare"
        broken.write_bytes(data[:length])
        with pytest.raises(PareError):
            list(File(broken).tensors())


def test_every_flipped_bit_is_noticed(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    generator = np.random.default_rng(0)
    spots = {*range(9), *range(len(data) - 300, len(data)), *generator.integers(0, len(data), 300).tolist()}
    for spot in spots:
        changed = bytearray(data)
        changed[spot] ^= 1 << int(generator.integers(8))
        broken = tmp_path / "flip.pare"
        broken.write_bytes(changed)
        with pytest.raises(PareError):
            list(File(broken).tensors())


def test_bytes_behind_the_end_are_noticed(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(PareError, match="damaged or cut off"):
        File(file)


def forge(path: Path, header: Any, sections: bytes = b"", raw: bytes | None = None, version: int = VERSION) -> Path:
    """A file with right checksums around whatever header."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    text = packer.compress(json.dumps(header).encode()) + packer.flush() if raw is None else raw
    start = container.MAGIC + bytes([version])
    path.write_bytes(start + sections + text + struct.pack("<II", len(text), zlib.crc32(text, zlib.crc32(start))))
    return path


def one_section(**changes: Any) -> tuple[dict[str, Any], bytes]:
    body = b"\x00\x00\x80\x3f" * 4
    tensor = {"name": "a", "dtype": "float32", "shape": [4], "kind": "raw"} | changes
    header = {"sections": [{"length": 16, "side": 16, "tensors": [tensor]}], "manifest": {}}
    return header, body + struct.pack("<I", zlib.crc32(body))


def test_a_forged_file_is_read_when_it_is_right(tmp_path: Path) -> None:
    assert dict(File(forge(tmp_path / "a", *one_section())).tensors())["a"].tolist() == [1.0] * 4


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    """There the planes that are coded are true, the others false."""
    values = torch.randn(500)
    planes = values.numpy().view(np.uint8).reshape(-1, 4)
    encoder = Encoder()
    encoder.adaptive(planes[:, 3].astype(np.int32), 256)
    side = planes[:, :3].T.tobytes()
    body = side + encoder.bytes()
    tensor = {"name": "a", "shape": [500], "kind": "planes", "planes": [False, False, False, True]}
    header = {"sections": [{"length": len(body), "side": len(side), "tensors": [tensor]}], "manifest": {}}
    path = forge(tmp_path / "a", header, body + struct.pack("<I", zlib.crc32(body)), version=1)
    assert torch.equal(dict(File(path).tensors())["a"], values)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [5]},
        {"shape": [3]},
        {"shape": [-1]},
        {"shape": [1 << 39, 1 << 39]},
        {"shape": [2.0]},
        {"shape": [True]},
        {"shape": "4"},
        {"shape": [1] * 65},
        {"dtype": "float31"},
        {"dtype": None},
        {"name": 3},
        {"bits": 1},
        {"kind": "zip"},
        {"kind": "table"},
        {"kind": "table", "values": 0},
        {"kind": "table", "values": 10**9},
        {"kind": "table", "values": 2, "classes": 10**9},
        {"kind": "table", "values": 2, "static": True},
        {"kind": "table", "values": 3, "axis": 7},
        {"kind": "table", "values": 2, "half": 1},
        {"kind": "mixed", "values": 2},
        {"kind": "mixed", "values": 2, "classes": 2},
        {"kind": "mixed", "values": 2, "levels": "line"},
        {"kind": "table", "values": 4096, "levels": "rows", "shape": [1 << 20, 1]},
        {"kind": "sparse"},
        {"kind": "sparse", "planes": [False] * 4},
        {"kind": "table", "values": 2, "classes": 2, "shape": [1 << 39, 0]},
        {"whole": [2, 3]},
        {"whole": []},
        {"whole": [8], "shape": [0]},
        {"kind": "planes", "planes": [True]},
        {"kind": "planes", "planes": [1, 0, 0, 1]},
        {"kind": "planes", "planes": [True, True, True, True]},
        {"kind": "planes", "planes": [0, 0, 0, 0, 0]},
        {"kind": "planes", "planes": [0, 0, 0, 3]},
        {"kind": "planes", "planes": [0, 0, 0, [2]]},
        {"kind": "planes", "planes": [0, 0, 0, 2]},
        {"kind": "planes", "planes": [0, 0, 0, 0], "turned": True},
        {"kind": "planes", "planes": [0, 0, 0, 1], "moved": 4},
        {"kind": "planes", "planes": [0, 0, 0, 1], "moved": True},
        {"kind": "planes", "planes": [0, 0, 0, 1], "moved": 1},
        {"kind": "raw", "turned": True},
        {"surprise": 1},
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(PareError):
        list(File(forge(tmp_path / "a", *one_section(**changes))).tensors())


@pytest.mark.parametrize(
    "header",
    [
        [],
        3,
        None,
        {},
        {"sections": 1},
        {"sections": [{}]},
        {"sections": [], "no": 1},
        {"sections": [[]], "manifest": 1},
    ],
)
def test_headers_of_another_form_are_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(PareError):
        File(forge(tmp_path / "a", header))


@pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"[" * 100_000])
def test_headers_that_are_no_json_are_refused(tmp_path: Path, raw: bytes) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(raw) + packer.flush() if raw.startswith(b"[") else raw
    with pytest.raises(PareError):
        File(forge(tmp_path / "a", None, raw=packed))


def test_a_section_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    header, body = one_section()
    header["sections"][0]["length"] = 1 << 40
    with pytest.raises(PareError, match="sections take"):
        File(forge(tmp_path / "a", header, body))


def test_bombs_are_refused_quickly(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b" " * (1 << 28)) + packer.flush()
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(PareError):
            File(forge(tmp_path / "a", None, raw=bomb))
        with pytest.raises(PareError, match="would decode to"):
            File(forge(tmp_path / "b", *one_section(shape=[1 << 34], kind="table", values=1)))
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 4 * LARGEST_HEADER


def test_a_large_file_can_be_allowed(tmp_path: Path) -> None:
    write(tmp_path / "a", [("a", torch.zeros(1 << 20))], {})
    with pytest.raises(PareError, match="pass max_bytes"):
        File(tmp_path / "a", max_bytes=100)
    assert File(tmp_path / "a", max_bytes=1 << 22).entries[0].count == 1 << 20


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, this is not the file you are looking for")
    (tmp_path / "new").write_bytes(container.MAGIC + b"\x09" + b"\0" * 40)
    for name, message in (("empty", "no .pare file"), ("text", "no .pare file"), ("new", "format version 9")):
        with pytest.raises(PareError, match=message):
            File(tmp_path / name)
    with pytest.raises(PareError, match="cannot be read"):
        File(tmp_path / "missing")
    with pytest.raises(PareError, match="cannot be read"):
        File(tmp_path)


def test_the_old_file_survives_a_failure(file: Path) -> None:
    before = file.read_bytes()

    def failing() -> Any:
        yield "a", torch.ones(100_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(file, failing(), {})
    with pytest.raises(PareError, match="two tensors with the name"):
        write(file, [("a", torch.ones(1)), ("a", torch.ones(1))], {})
    with pytest.raises(PareError, match="complex"):
        write(file, [("a", torch.ones(1, dtype=torch.complex64))], {})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_reading_holds_one_section_at_a_time(tmp_path: Path) -> None:
    count, size = 12, 1 << 18
    values = torch.randint(50, (size,), generator=torch.Generator().manual_seed(0)).float()
    write(tmp_path / "a", ((f"t{i}", values) for i in range(count)), {})
    tracemalloc.start()
    total = sum(float(tensor.sum()) for _, tensor in File(tmp_path / "a").tensors())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 0
    assert peak < 8 * size * 4  # a dozen of them, and what decoding one takes, would be twice that


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sections and pieces of at most 64 bytes."""
    monkeypatch.setattr(container, "SECTION", 64)
    monkeypatch.setattr(container, "PIECE", 64)
    return 64


@pytest.mark.parametrize(
    ("shapes", "sections"),
    [
        ([(8,), (8,)], [["a"] * 2]),  # 32 bytes each: just one section
        ([(8,), (8,), (1,)], [["a"] * 2, ["a"]]),
        ([(16,), (16,)], [["a"], ["a"]]),  # as large as a piece may be
        ([(1,), (16,), (1,)], [["a"], ["a"], ["a"]]),
        ([(17,)], [["a"], ["a"]]),  # 16 and 1
        ([(5, 8)], [["a"], ["a"], ["a"]]),  # whole rows, two at a time
        ([(3, 3, 4)], [["a"], ["a"], ["a"]]),
        ([(2, 17)], [["a"], ["a"], ["a"]]),  # rows of more than a piece
        ([(0, 40), (), (40, 0)], [["a"] * 3]),
    ],
)
def test_small_tensors_share_a_section_and_large_ones_are_cut(
    tiny: int, tmp_path: Path, shapes: list[tuple[int, ...]], sections: list[list[str]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"a{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
    write(tmp_path / "a", tensors.items(), {})
    found = File(tmp_path / "a")
    assert same(dict(found.tensors()), tensors)
    assert [[piece.name[0] for piece in section.pieces] for section in found._sections] == sections
    assert [(e.name, e.shape, e.count) for e in found.entries] == [(n, t.shape, t.numel()) for n, t in tensors.items()]
    assert sum(len(entry.codes) for entry in found.entries) == sum(map(len, sections))
    body = sum(section.length for section in found._sections)
    assert found.header_bytes == (tmp_path / "a").stat().st_size - body
    assert found.size == (tmp_path / "a").stat().st_size


def test_bits_of_a_tensor_are_those_of_all_its_pieces(tiny: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [(name, torch.randn(64, generator=generator)) for name in "ab"]
    write(tmp_path / "a", tensors, {})
    found = File(tmp_path / "a")
    measured = list(found.measured())
    assert [
        (name, torch.equal(value, whole)) for (name, value, _), (_, whole) in zip(measured, tensors, strict=True)
    ] == [
        ("a", True),
        ("b", True),
    ]
    for (_, _, bits), sections in zip(measured, (found._sections[:4], found._sections[4:]), strict=True):
        whole = 8 * sum(section.length for section in sections)
        assert whole - 4 * 48 < bits <= whole, "but for what ends a section's code"


@pytest.mark.parametrize(
    "behind", [b"", b"\1", b"\1" * 7, b"\xff" * 8, struct.pack("<II", 0, 0), struct.pack("<II", 1, 0)]
)
def test_files_without_room_for_what_they_promise(tmp_path: Path, behind: bytes) -> None:
    (tmp_path / "a").write_bytes(container.MAGIC + bytes([container.VERSION]) + behind)
    with pytest.raises(PareError, match="damaged or cut off"):
        File(tmp_path / "a")
    (tmp_path / "b").write_bytes(container.MAGIC)
    with pytest.raises(PareError, match=r"format version \?"):
        File(tmp_path / "b")


def test_tensors_without_numbers_or_dense_storage_are_refused(tmp_path: Path) -> None:
    for tensor, why in (
        (torch.ones(2, device="meta"), "'w' is on the meta device and has no numbers yet"),
        (torch.ones(2, 2).to_sparse(), r"'w' is torch.float32 \(torch.sparse_coo\)"),
    ):
        with pytest.raises(PareError, match=why):
            write(tmp_path / "a", [("w", tensor)], {})
    write(tmp_path / "a", [("w", torch.arange(6.0).view(2, 3).T.requires_grad_())], {})
    ((_, value),) = File(tmp_path / "a").tensors()
    assert torch.equal(value, torch.arange(6.0).view(2, 3).T)


def test_as_many_bytes_as_are_allowed(tmp_path: Path) -> None:
    write(tmp_path / "a", [("w", torch.zeros(25)), ("n", torch.zeros(4, dtype=torch.int64))], {})
    assert len(File(tmp_path / "a", max_bytes=132).entries) == 2
    with pytest.raises(PareError, match=r"would decode to 132 bytes, more than the 131 allowed"):
        File(tmp_path / "a", max_bytes=131)


def test_bits_of_tensors_that_share_a_section_add_up_to_it(tmp_path: Path) -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "a", [("a", values), ("b", values.flip(0)), ("c", values[:250])], {})
    found = File(tmp_path / "a")
    (section,) = found._sections
    a, b, c = (bits for _, _, bits in found.measured())
    assert 8 * section.length - 100 < a + b + c <= 8 * section.length
    assert b == pytest.approx(a, rel=0.05)
    assert c == pytest.approx(a / 2, rel=0.1)
