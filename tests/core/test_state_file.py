"""Files of tensors: the same bits come back, any other bit is noticed, and nothing hostile takes time, memory or control."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paring.core.state_file import _NAMES, MAGIC, CheckpointError, read, read_from, write


def written(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    write(file, state)
    return file.getvalue()


def again(data: bytes) -> dict[str, Any]:
    return read_from(io.BytesIO(data), len(data))


def forged(header: Any, body: bytes = b"") -> bytes:
    """A file of this header and body, whose digest is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = MAGIC + struct.pack("<Q", len(text)) + text + body
    return data + hashlib.sha256(data).digest()


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, types, bits and strides included."""
    if isinstance(a, torch.Tensor):
        bits = torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.dim() else True
        return bits and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(a[key], b[key]) and type(key) is type(next(k for k in b if k == key)) for key in a
        )
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


STATE: dict[str, Any] = {
    "numbers": [0, -3, 2**70, 0.1, 1e-310, -0.0, float("inf"), float("-inf"), float("nan"), True, False, None],
    "text": ['"$', "é\n\ud800", ""],
    "pairs": (1, (2.5, ()), []),
    "by number": {0: {"a": 1}, 7: {}, "x": 2},
    "like a mark": {"$": 1, "$tuple": 2},
    "scalar": torch.tensor(3.25),
    "channels last": torch.randn(3, 4, 5, 2).contiguous(memory_format=torch.channels_last),
    "one by one": torch.randn(3, 4, 1, 1).contiguous(memory_format=torch.channels_last),
    "turned": torch.randn(3, 4).t(),
    "empty": [torch.zeros(0), torch.zeros(3, 0, 2)],
    "types": {name: torch.arange(6).remainder(2).to(getattr(torch, name)).view(2, 3) for name in _NAMES},
}


def test_what_is_written_comes_back_bit_for_bit() -> None:
    found = again(written(STATE))
    for key, value in STATE.items():
        assert same(value, found[key]), key
    assert found.keys() == STATE.keys()


def test_views_are_written_whole_and_tied_tensors_once() -> None:
    x = torch.randn(100, 100)
    part = x[3:5, ::2]
    tied = written({"a": x, "b": x, "part": part, "wide": torch.ones(1).expand(5)})
    found = again(tied)
    assert len(tied) < 1.1 * x.numel() * 4
    assert torch.equal(found["part"], part)
    assert torch.equal(found["b"], x)
    assert found["wide"].tolist() == [1] * 5


def test_an_optimizer_and_a_network_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    opt = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 1, 3, 3)).sum().backward()
    opt.step()
    found = again(written({"net": net.state_dict(), "opt": opt.state_dict()}))
    assert same(dict(net.state_dict()), found["net"])
    assert same(opt.state_dict(), found["opt"])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "deep/1 is"),
        ({1, 2}, "a set"),
        (b"bytes", "a bytes"),
        (print, "builtin_function_or_method"),
        ({(1, 2): 3}, "a dict"),
        (torch.ones(2).to_sparse(), "torch.sparse_coo"),
        (torch.empty(2, device="meta"), "on meta"),
    ],
)
def test_what_cannot_be_held_is_named(value: object, name: str) -> None:
    with pytest.raises(CheckpointError, match="'deep/1' is") as caught:
        written({"deep": [0, value]})
    assert name.removeprefix("deep/1 is") in str(caught.value)


def test_too_much_besides_tensors_is_refused_when_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.core.state_file.VALUES", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 values"):
        written({"rows": [0] * 1000})


def test_every_flipped_bit_is_noticed() -> None:
    data = written({"weights": torch.randn(40, 3), "step": 7, "name": "net"})
    assert same(again(data)["step"], 7)
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            again(bytes(broken))


def test_every_length_but_its_own_is_noticed() -> None:
    data = written({"weights": torch.randn(5), "step": 7})
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            again(data[:length])
    with pytest.raises(CheckpointError):
        again(data + b"\0")


HOSTILE: dict[str, bytes] = {
    "huge tensor": forged({"tensors": [["float32", [1 << 40], [1]]], "state": {}}),
    "huge product": forged({"tensors": [["float32", [1 << 40, 1 << 40], [1 << 40, 1]]], "state": {}}),
    "too many dimensions": forged({"tensors": [["float32", [1] * 65, [1] * 65]], "state": {}}, b"0000"),
    "overlapping": forged({"tensors": [["float32", [2, 2], [1, 1]]], "state": {}}, b"0" * 16),
    "with gaps": forged({"tensors": [["float32", [2], [1 << 30]]], "state": {}}, b"0" * 8),
    "negative stride": forged({"tensors": [["float32", [2], [-1]]], "state": {}}, b"0" * 8),
    "no type": forged({"tensors": [["Tensor", [1], [1]]], "state": {}}, b"0000"),
    "type by path": forged({"tensors": [["os.system", [1], [1]]], "state": {}}, b"0000"),
    "wrong truth": forged({"tensors": [["bool", [1], [1]]], "state": {}}, b"\2"),
    "unused bytes": forged({"tensors": [], "state": {}}, b"0000"),
    "no such tensor": forged({"tensors": [], "state": {"a": {"$": 0}}}),
    "negative tensor": forged({"tensors": [["bool", [1], [1]]], "state": {"a": {"$": -1}}}, b"\1"),
    "tensor by text": forged({"tensors": [], "state": {"a": {"$": "0"}}}),
    "unknown mark": forged({"tensors": [], "state": {"a": {"$call": ["os.system", "true"]}}}),
    "two marks": forged({"tensors": [], "state": {"a": {"$tuple": [], "$items": []}}}),
    "odd pairs": forged({"tensors": [], "state": {"a": {"$items": [[1, 2, 3]]}}}),
    "odd key": forged({"tensors": [], "state": {"a": {"$items": [[[1], 2]]}}}),
    "odd float": forged({"tensors": [], "state": {"a": {"$float": "1e9999"}}}),
    "NaN": forged(b'{"tensors": [], "state": {"a": NaN}}'),
    "twice": forged(b'{"tensors": [], "state": {"a": 1, "a": 2}}'),
    "deep": forged(b'{"tensors": [], "state": ' + b"[" * 100_000),
    "rather deep": forged(b'{"tensors": [], "state": {"a": ' + b"[" * 150 + b"]" * 150 + b"}}"),
    "many": forged(b'{"tensors": [], "state": {"a": [' + b"[]," * 3_000_000 + b"0]}}"),
    "no dict": forged({"tensors": [], "state": [1]}),
    "no header": forged([1, 2]),
    "one field": forged({"state": {}}),
    "another field": forged({"tensors": [], "state": {}, "code": "import os"}),
    "no text": forged(b"\xff\xfe"),
    "longer than the file": MAGIC + struct.pack("<Q", 1 << 62) + bytes(64),
    "an old one": b"PK\3\4" + bytes(100),
    "a pickle": b"\x80\x04cos\nsystem\n(Vtrue\ntR.",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_error_soon_and_small(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            again(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_name_is_only_text(tmp_path: Path) -> None:
    """Headers made of random parts of real ones with a module's name in every place: nothing is ever imported."""
    planted = tmp_path / "planted_by_test.py"
    planted.write_text("raise SystemExit('imported')")
    rng = random.Random(0)
    good = json.loads(forged({"tensors": [["float32", [2], [1]]], "state": {"a": {"$": 0}, "b": [1, "x"]}})[23:-32])
    names = [
        "planted_by_test",
        "planted_by_test:run",
        {"__enum__": True, "fqn": "planted_by_test:run"},
        {"$": "planted_by_test"},
    ]
    for _ in range(200):
        header = json.loads(json.dumps(good))
        node, key = header, rng.choice(["tensors", "state"])
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node[key] = rng.choice(names)
        try:
            again(forged(header, bytes(8)))
        except CheckpointError:
            continue


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(CheckpointError, match="it is no file"):
            read(path)


def test_an_ordered_dict_is_a_dict() -> None:
    assert again(written({"a": OrderedDict(x=1)})) == {"a": {"x": 1}}
