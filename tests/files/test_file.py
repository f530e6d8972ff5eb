"""Files: what goes in comes out, and nothing else does."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from paring.core import FileError, SelectLinear
from paring.files import load, save
from paring.files.file import described
from paring.files.manifest import checked
from paring.removal import GraphNet, compact
from tests.removal.transformers_zoo import GPT, ViT


def factory() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(144, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def small() -> nn.Module:
    torch.manual_seed(0)
    net = factory().eval()
    with torch.no_grad():
        net[1].weight[:2] = 0  # folds into 4, which gets a bias
        net[4].weight[3:] = 0
    return compact(net, torch.randn(2, 1, 8, 8))[0]


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def test_round_trip_of_a_shrunk_network(tmp_path: Path) -> None:
    net = small()
    save(net, tmp_path / "net.safetensors")
    back = load(factory, tmp_path / "net.safetensors").eval()
    assert same(net, back)
    assert [m.in_features for m in back if isinstance(m, nn.Linear)] == [72, 3]
    assert (back[0].out_channels, back[1].num_features) == (2, 2)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x), back(x))
    back(x).sum().backward()
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        manifest = json.loads(file.metadata()["paring"])
    assert manifest["version"] == 1
    assert manifest["tensors"]["0.weight"] == ["float32", [2, 1, 3, 3]]


def test_selected_inputs_and_other_dtypes(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    net = mlp().eval()
    with torch.no_grad():
        net[0].weight[:, :3] = 0
    net = compact(net, torch.randn(2, 8), drop_inputs=True)[0].bfloat16()
    save(net, tmp_path / "a")
    back = load(mlp, tmp_path / "a")
    assert same(net, back)
    assert type(back[0]) is SelectLinear
    assert back[0].reads.tolist() == [3, 4, 5, 6, 7]
    x = torch.randn(2, 8).bfloat16()
    assert torch.equal(net(x), copy.deepcopy(back)(x))


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        if tie:
            self.head.weight = self.emb.weight
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.free = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.emb(x))


def test_ties_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = Tied()
    save(net, tmp_path / "a")
    back = load(Tied, tmp_path / "a")
    assert back.head.weight is back.emb.weight
    assert torch.equal(back.emb.weight, net.emb.weight)
    assert not back.free.requires_grad
    assert back.emb.weight.requires_grad
    assert (tmp_path / "a").stat().st_size < 1500
    save(Tied(tie=False), tmp_path / "b")
    with pytest.raises(FileError, match=r"ties head\.weight to emb\.weight"):
        load(Tied, tmp_path / "b")


def test_the_graph_form_comes_back_without_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = GPT().double().eval(), torch.randint(0, 11, (2, 6))
    with torch.no_grad():
        for block in net.blocks:
            block.attention.qkv.weight[36:40], block.attention.qkv.bias[36:40] = 0, 0
            block.mlp[0].weight[:3] = 0
    small, _ = compact(net, x, verify=False, form="graph")
    save(small, tmp_path / "a")
    back = load(GPT, tmp_path / "a").eval()
    assert isinstance(back, GraphNet)
    assert same(small, back)
    assert back.head.weight is back.words.weight
    more = torch.randint(0, 11, (5, 6))
    assert torch.equal(small(more), back(more))
    back.train()(more).sum().backward()
    save(back, tmp_path / "b")
    assert same(load(GPT, tmp_path / "b"), small)
    with safe_open(tmp_path / "a", "pt") as file:
        manifest = json.loads(file.metadata()["paring"])
    assert manifest["version"] == 4
    assert manifest["graph"]["gone"]["blocks.0.mlp.0"] == [20, [0, 1, 2]]
    assert manifest["graph"]["example"] == {"tuple": [{"tensor": [[2, 6], "int64"]}]}
    with pytest.raises(FileError, match="gives none"):
        load(ViT, tmp_path / "a")
    with pytest.raises(FileError, match="another architecture"):
        load(lambda: GPT("softmax"), tmp_path / "a")
    with pytest.raises(FileError, match="compacted again"):
        save(compact(small, x, verify=False, form="graph")[0], tmp_path / "c")


def test_another_architecture_is_named(tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    with pytest.raises(FileError, match="'6' is a Linear in the file, the factory has nothing there"):
        load(lambda: nn.Sequential(*factory()[:6]), tmp_path / "a")
    with pytest.raises(FileError, match=r"not in the file: 7\.weight"):
        load(lambda: nn.Sequential(*factory(), nn.PReLU()), tmp_path / "a")
    save(Tied(), tmp_path / "b")

    def narrower() -> nn.Module:
        net = Tied()
        net.free = nn.Parameter(torch.zeros(2))
        return net

    with pytest.raises(FileError, match=r"free has shape \(3,\) in the file and \(2,\)"):
        load(narrower, tmp_path / "b")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        load(factory, tmp_path / "nowhere")
    (tmp_path / "x").write_text("hello")
    with pytest.raises(FileError, match="not a file that paring"):
        load(factory, tmp_path / "x")
    for metadata in ({}, {"__metadata__": None}, {"__metadata__": {"format": "pt"}}):
        header = json.dumps(metadata | {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (tmp_path / "y").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(FileError, match="another program wrote it"):
            load(factory, tmp_path / "y")


def test_truncations_and_flips_are_caught(tmp_path: Path) -> None:
    def tiny() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))

    net, path = tiny(), tmp_path / "a"
    save(net, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FileError):
            load(tiny, path)
    draw = random.Random(0)
    caught = 0
    for _ in range(400):
        broken = bytearray(data)
        broken[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(broken)
        try:
            assert same(load(tiny, path), net)  # e.g. other white space after the header
        except FileError:
            caught += 1
    assert caught > 370


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save(small(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(factory(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "units", [{"1": "sign"}, {"1": []}, {"1": ["staircase", -1]}, {"1": ["staircase", "3"]}, ["sign"]]
)
def test_units_that_make_no_sense_are_refused(units: object, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    _, manifest = described(net)
    state = net.state_dict()
    with pytest.raises(FileError, match="units make no sense"):
        checked(manifest | {"units": units}, {n: ("float32", tuple(v.shape)) for n, v in state.items()}, tmp_path)
