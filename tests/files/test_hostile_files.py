"""Hostile .safetensors files: one FileError, nothing run, nothing large made, nothing waited for."""

from __future__ import annotations

import json
import os
import random
import time
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import FileError
from paring.files import load, save
from paring.testing.fuzz import Seed, campaign, sown
from paring.testing.fuzz.fuzz_nets import Written
from paring.testing.fuzz.network_format import FILE, Network, signed, taken_apart

SEEDS: dict[str, Seed] = {seed.name: seed for seed in Network().seeds()}


def forged(name: str, change: Callable[[dict[str, Any]], object], path: Path) -> Path:
    """The file of this name with another manifest, and the digest that fits it."""
    table, manifest, body = taken_apart(SEEDS[name].files[FILE])
    change(manifest)
    chance = random.Random(1)
    assert chance.random() > 0.06  # as_text leaves it alone
    path.mkdir(exist_ok=True)
    (path / FILE).write_bytes(signed(table, manifest, body, random.Random(1)))
    return path


def test_many_changes() -> None:
    counts = campaign(Network(), cases=250)
    assert not counts.failing
    assert min(counts.outcomes[name] for name in ("read whole", "read as other numbers")) > 1
    assert counts.outcomes["refused"] > 100


def test_planted_code_in_every_field_is_left_alone() -> None:
    counts = sown(Network(), every=37)
    assert not counts.failing
    assert counts.outcomes["refused"] > 80


def test_all_seeds_come_back_in_eval_mode(tmp_path: Path) -> None:
    for seed in SEEDS.values():
        (tmp_path / FILE).write_bytes(seed.files[FILE])
        net, _ = seed.read(tmp_path)  # type: ignore[misc]
        assert not any(module.training for module in net.modules())


def without(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        node = manifest
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    return change


def put(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        node = manifest
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


LEAF = {"tensor": [[2, 4], "float32"]}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("plain", without("ties"), "ties make no sense"),
        ("plain", without("modules"), "modules make no sense"),
        ("plain", without("version"), "format version None"),
        ("plain", put(2, "version"), "format version 2, this paring reads 1 and 4"),
        ("plain", put(True, "version"), "format version True"),
        ("plain", put({}, "more"), "unknown part 'more'"),
        ("plain", put({"x": "nowhere"}, "ties"), "ties name tensors that are not there"),
        ("plain", put({"0.weight": "0.weight"}, "ties"), "ties name tensors that are not there"),
        ("plain", put("os.system", "modules", "0"), "kind 'os.system', which is not known here"),
        ("plain", put({"2": ["sign", 10**9]}, "units"), "units make no sense"),
        ("plain", put({"2": ["sign", 7]}, "units"), "'2' is a sign 7 in the file"),
        ("plain", put({"": ["sign"]}, "units"), "'' is a sign in the file"),
        ("plain", put(["float32", [9, 9]], "tensors", "0.weight"), "holds other tensors than it says"),
        ("plain", put("SelectLinear", "modules", "4"), "not in the file: 4.reads"),
        ("selected", put("Linear", "modules", "0"), "only in the file: 0.reads"),
        ("tied", without("ties", "head.weight"), "not in the file: head.weight"),
        ("graph", without("graph"), "format version and its graph do not fit"),
        ("graph", put(1, "version"), "format version and its graph do not fit"),
        ("graph", without("graph", "example"), "graph makes no sense"),
        ("graph", put("[1]", "graph", "inputs"), "graph makes no sense"),
        ("graph", without("graph", "free"), "graph makes no sense"),
        ("graph", put(["5"], "graph", "free"), "graph makes no sense"),
        ("graph", put([5] * 65, "graph", "free"), "graph makes no sense"),
        ("graph", put({"x": [3_000_000_000, []]}, "graph", "gone"), "units in the file"),
        ("graph", put([3_000_000_000, [0, 1, 2]], "graph", "gone", "first"), "'first' has 3000000000 units in the file, 6 in"),
        ("graph", put([6, [2, 1]], "graph", "gone", "first"), "graph makes no sense"),
        ("graph", put([6, [-1]], "graph", "gone", "first"), "graph makes no sense"),
        ("graph", put([6, [6]], "graph", "gone", "first"), "graph makes no sense"),
        ("graph", put(LEAF, "graph", "example"), "no tuple of arguments"),
        ("graph", put({"tuple": [LEAF | {"x": 1}]}, "graph", "example"), "example cannot be read"),
        ("graph", put({"tuple": [{"namedtuple": []}]}, "graph", "example"), "example cannot be read"),
        ("graph", put({"tuple": [{"tensor": [[2, 4], "system"]}]}, "graph", "example"), "example cannot be read"),
        ("graph", put({"tuple": [{"tensor": [[2, 1 << 40], "int8"]}]}, "graph", "example"), "more than the 16,777,216"),
        ("graph", put({"tuple": [{"tensor": [[1 << 40, 1 << 40], "int8"]}]}, "graph", "example"), "example cannot be read"),
        ("graph", put({"tuple": [{"tensor": [[2, 9], "float32"]}]}, "graph", "example"), "Written gives none"),
    ],
)  # fmt: skip
def test_manifests_that_make_no_sense_are_refused(
    name: str, change: Callable[[dict[str, Any]], object], why: str, tmp_path: Path
) -> None:
    folder = forged(name, change, tmp_path)
    with pytest.raises(FileError, match=why):
        SEEDS[name].read(folder)


def test_deep_nesting(tmp_path: Path) -> None:
    for depth, why in ((30, "example cannot be read"), (400, "nested more than 100 deep")):
        deep: object = {"value": 1}
        for _ in range(depth):
            deep = {"tuple": [deep]}
        with pytest.raises(FileError, match=why):
            SEEDS["graph"].read(forged("graph", put(deep, "graph", "example"), tmp_path))
    text = json.dumps({"__metadata__": {"paring": "[" * 100_000}}).encode()
    (tmp_path / FILE).write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError, match="no JSON that can be read"):
        SEEDS["plain"].read(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "value", "why"),
    [
        ("0.weight", torch.zeros(3, 3), "'0', a Linear, has a bias of"),
        ("0.bias", torch.zeros(2), r"'0', a Linear, has a bias of \(2,\)"),
        ("0.bias", torch.zeros(2, 2), "no layer explains"),
        ("2.weight", torch.zeros(2, 4, dtype=torch.int64), "is torch.int64 in the file and torch.float32"),
        ("3.weight", torch.zeros(5), "'3', a BatchNorm1d, has tensors of"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(tensor: str, value: Tensor, why: str, tmp_path: Path) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))

    net = factory()
    path, _, leaf = tensor.rpartition(".")
    setattr(net.get_submodule(path), leaf, nn.Parameter(value, requires_grad=value.is_floating_point()))
    save(net, tmp_path / "a")
    with pytest.raises(FileError, match=why):
        load(factory, tmp_path / "a")
    pr.pack(net, tmp_path / "a.pare")
    with pytest.raises(pr.PareError, match=why):
        pr.unpack(factory, tmp_path / "a.pare")


def test_inputs_that_are_not_there_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(SEEDS["selected"].files[FILE])
    net, _ = SEEDS["selected"].read(tmp_path)  # type: ignore[misc]
    net[0].reads[-1] = 8
    save(net, tmp_path / FILE)
    with pytest.raises(FileError, match="reads inputs 3 to 8, and there are 8"):
        SEEDS["selected"].read(tmp_path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(FileError, match="cannot be read"):
            load(Written, path)
        with pytest.raises(pr.PareError, match="cannot be read"):
            pr.unpack(None, path)
    assert time.monotonic() - began < 5


def test_a_network_is_copied_and_what_a_factory_makes_is_filled(tmp_path: Path) -> None:
    net, given = nn.Linear(2, 2), nn.Linear(2, 2).train()
    before = given.weight.detach().clone()
    save(net, tmp_path / "a")
    pr.pack(net, tmp_path / "a.pare")
    for read in (lambda given: load(given, tmp_path / "a"), lambda given: pr.unpack(given, tmp_path / "a.pare")):
        found = read(given)
        assert found is not given
        assert torch.equal(found.weight, net.weight)
        assert not found.training
        assert torch.equal(given.weight, before)
        assert given.training
        with pytest.raises(TypeError, match="the factory gave a int"):
            read(lambda: 3)
        with pytest.raises(TypeError, match="the network comes first"):
            read(str(tmp_path / "a"))
        assert read(lambda: net.train()) is net
        assert not net.training
    gated = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    pr.attach(gated, pr.L0(price=1e-3), torch.ones(1, 2))
    with pytest.raises(pr.FileError, match="load takes a network without gates"):
        load(gated, tmp_path / "a")
    with pytest.raises(pr.PareError, match="load takes a network without gates"):
        pr.unpack(gated, tmp_path / "a.pare")


class Nested(nn.Module):
    """A forward whose inputs come nested in any way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, given: Any, a: Any = None, b: Any = None, c: Any = None, d: Any = None) -> Tensor:
        x = given if isinstance(given, Tensor) else next(iter(given.values() if isinstance(given, dict) else given))
        found: Tensor = self.last(torch.relu(self.first(x)).view(-1, 2, 3).reshape(-1, 6))
        return found


def compacted(*example: Any) -> nn.Module:
    net = Nested().eval()
    with torch.no_grad():
        net.first.weight[:3], net.first.bias[:3] = 0, -10
    return pr.compact(net, example, verify=False, form="graph")[0]


def test_nested_inputs_come_back(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    for example in ((x,), ({"b": x, "a": torch.ones(3, 1)}, None), ([x, (x, {"k": x})], 2.5, True, "text", 3)):
        net = compacted(*example)
        save(net, tmp_path / "a")
        pr.pack(net, tmp_path / "a.pare")
        for back in (load(Nested, tmp_path / "a"), pr.unpack(Nested, tmp_path / "a.pare")):
            assert torch.equal(net(*example), back(*example))
            assert not back.training


def test_other_containers_are_refused_when_saving(tmp_path: Path) -> None:
    pair = namedtuple("pair", "x y")
    x = torch.randn(2, 4)
    for given in (OrderedDict(a=x), pair(x, x), {1: x}):
        with pytest.raises(
            FileError, match=f"a {type(given).__name__} among its arguments .* cannot hold; use tensors"
        ):
            save(compacted(given), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_large_batch_is_written_small(tmp_path: Path) -> None:
    class Wide(Nested):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mean(1))

    net = Wide().eval()
    with torch.no_grad():
        net.first.weight[:3], net.first.bias[:3] = 0, -10
    small, _ = pr.compact(net, torch.zeros(70, 20_000, 4), verify=False, form="graph")
    save(small, tmp_path / "a")
    _, manifest, _ = taken_apart((tmp_path / "a").read_bytes())
    assert manifest["graph"]["example"] == {"tuple": [{"tensor": [[52, 20_000, 4], "float32"]}]}
    x = torch.randn(1, 20_000, 4)
    assert torch.equal(small(x), load(Wide, tmp_path / "a")(x))
    wider, _ = pr.compact(net, torch.zeros(2, 600_000, 4), verify=False, form="graph")
    with pytest.raises(FileError, match="may ask for 16,777,216; compact the network with a smaller example"):
        save(wider, tmp_path / "b")


def test_names_of_a_file_are_shown_escaped(tmp_path: Path) -> None:
    folder = forged("plain", put("Linear", "modules", "\x1b[31m\n\udc80"), tmp_path)
    with pytest.raises(FileError) as found:
        SEEDS["plain"].read(folder)
    assert r"'\x1b[31m\n\udc80' is a Linear in the file" in str(found.value)
