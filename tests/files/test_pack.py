"""`pack` and `unpack`: networks come back bit for bit, and nothing is lost when something goes wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import paring as pr
from paring.files import File, Shards
from paring.files.pare import container
from paring.files.shards import save_stream
from paring.models import build
from tests import forked


class Tied(nn.Module):
    """An embedding whose weight is the classifier's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.embed(x).mean(1)))
        return found


def resnet() -> nn.Module:
    return build("resnet20", shape=(3, 8, 8), classes=10)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)


@pytest.mark.parametrize("verify", [True, False])
def test_packing_says_how_far_it_is(tmp_path: Path, verify: bool) -> None:
    net, seen = mlp(), list[pr.core.Progress]()
    pr.pack(net, tmp_path / "a.pare", verify=verify, watch=seen.append)
    whole = sum(p.numel() * 4 for p in net.parameters())
    assert [one.what for one in seen] == [*net.state_dict()] * (2 if verify else 1)
    assert {one.total for one in seen} == {whole * (2 if verify else 1)}
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total


def test_a_network_comes_back(tmp_path: Path) -> None:
    net = resnet()
    net(torch.randn(4, 3, 8, 8))  # running statistics and counters are not those of the factory
    size = pr.pack(net, tmp_path / "a.pare")
    assert size == (tmp_path / "a.pare").stat().st_size
    found = pr.unpack(resnet, tmp_path / "a.pare")
    assert same(net, found)
    blank = resnet()
    assert pr.unpack(lambda: blank, tmp_path / "a.pare") is blank
    assert same(net, blank)
    state = pr.unpack(None, tmp_path / "a.pare")
    assert list(state) == list(net.state_dict())
    assert {entry.name for entry in File(tmp_path / "a.pare").entries} >= {"bn1.running_var", "bn1.num_batches_tracked"}


def test_ties_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = Tied()
    pr.pack(net, tmp_path / "a.pare")
    assert "head.weight" not in {entry.name for entry in File(tmp_path / "a.pare").entries}
    found = pr.unpack(Tied, tmp_path / "a.pare")
    assert found.head.weight is found.embed.weight
    assert same(net, found)
    state = pr.unpack(None, tmp_path / "a.pare")
    assert state["head.weight"] is state["embed.weight"]
    pr.pack(net.state_dict(), tmp_path / "b.pare")
    assert same(net, pr.unpack(Tied, tmp_path / "b.pare"))


def test_a_network_of_other_widths_comes_back(tmp_path: Path) -> None:
    net, x = mlp(), torch.randn(5, 20)
    with torch.no_grad():
        net[0].weight[:17] = 0
        net[0].bias[:17] = 0
    small, _ = pr.compact(net, x)
    pr.pack(small, tmp_path / "a.pare")
    found = pr.unpack(mlp, tmp_path / "a.pare")
    assert found[0].out_features == 13
    assert torch.equal(found(x), small(x))


def test_a_foreign_factory_is_refused(tmp_path: Path) -> None:
    pr.pack(mlp(), tmp_path / "a.pare")
    for factory in (resnet, Tied, lambda: nn.Linear(20, 30)):
        with pytest.raises(pr.PareError, match="another architecture"):
            pr.unpack(factory, tmp_path / "a.pare")


@pytest.mark.parametrize(
    "manifest", [3, None, {"ties": 1}, {"ties": {"a": "b"}}, {"modules": {"a": 2}}, {"modules": []}]
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, manifest: object) -> None:
    container.write(tmp_path / "a.pare", mlp().state_dict().items(), manifest)
    with pytest.raises(pr.PareError):
        pr.unpack(mlp, tmp_path / "a.pare")


def test_negative_zeros_become_zeros_unless_they_are_kept(tmp_path: Path) -> None:
    tensor = torch.randn(80, 50).sign() * 0.0
    signed = pr.pack({"a": tensor}, tmp_path / "a.pare", signed_zeros=True)
    assert torch.equal(pr.unpack(None, tmp_path / "a.pare")["a"].signbit(), tensor.signbit())
    assert pr.pack({"a": tensor}, tmp_path / "b.pare") < signed / 3
    assert not pr.unpack(None, tmp_path / "b.pare")["a"].signbit().any()


def test_what_is_no_dense_tensor_is_refused(tmp_path: Path) -> None:
    for odd in (torch.ones(3).to_sparse(), torch.ones(3, dtype=torch.complex64), "text"):
        with pytest.raises(pr.PareError):
            pr.pack({"a": odd}, tmp_path / "a.pare")  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []


def test_a_file_that_does_not_come_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pare"
    pr.pack(mlp(), path)
    before = path.read_bytes()

    def wrong(self: File) -> object:
        yield from ((name, tensor + 1) for name, tensor, _ in self.measured(False))

    monkeypatch.setattr(File, "tensors", wrong)
    with pytest.raises(pr.PareError, match="does not come back"):
        pr.pack(resnet(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pare"]


def test_a_network_file_whose_mark_is_damaged_is_no_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    pr.save(nn.Linear(2, 2), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"paring"', b'"piring"', 1))
    with pytest.raises(pr.PareError, match=r"is damaged: .* not under its name"):
        Shards([path])
    save_file({"w": torch.ones(2)}, path, {"format": "pt", "notes": "trained with modules"})
    assert Shards([path]).manifest is None


def test_safetensors_and_back(tmp_path: Path) -> None:
    net = Tied()
    pr.save(net, tmp_path / "a.safetensors")
    shards = Shards([tmp_path / "a.safetensors"])
    pr.pack(shards, tmp_path / "a.pare", manifest=shards.manifest)
    file = File(tmp_path / "a.pare")
    save_stream(tmp_path / "b.safetensors", file.entries, file.tensors(), file.manifest)
    assert same(net, pr.load(Tied, tmp_path / "b.safetensors"))
    with pytest.raises(pr.PareError, match="both"):
        Shards([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    with pytest.raises(pr.PareError, match="no readable"):
        Shards([tmp_path / "a.pare"])


_CHILD = """
import os, resource, signal, sys, torch
from paring.files import pack
torch.set_num_threads(1)
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def tensors():
    yield "a", torch.randn(300, 300)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    yield "b", torch.randn(300, 300)
from paring.files.pare.container import write
write(sys.argv[1], tensors(), {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["full", "kill"])
def test_a_full_disk_or_a_kill_leaves_the_old_file(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, accident: str
) -> None:
    path = tmp_path / "a.pare"
    pr.pack(mlp(), path)
    before = path.read_bytes()
    code, said = forked.run(_CHILD, tmp_path_factory.mktemp("child"), str(path), accident)
    assert code == (1 if accident == "full" else -signal.SIGKILL), said
    if accident == "full":
        assert "File too large" in said
        assert os.listdir(tmp_path) == ["a.pare"]
    assert path.read_bytes() == before
    assert len(os.listdir(tmp_path)) == (1 if accident == "full" else 2)
    pr.pack(mlp(), path)
    assert os.listdir(tmp_path) == ["a.pare"]


_MEMORY = """
import sys, torch
from pathlib import Path
from paring.files import pack
from paring.files.pare.container import File
from paring.files.shards import Shards
from paring.files.shards import save_stream
from tests.files.test_pack import anonymous
torch.set_num_threads(1)
folder = Path(sys.argv[1])
pack({"a": torch.randn(10, 10)}, folder / "warm.pare")
shards = Shards(sorted(folder.glob("*.safetensors")))
print(anonymous("self"), flush=True)
pack(shards, folder / "a.pare")
file = File(folder / "a.pare")
save_stream(folder / "b.out", file.entries, file.tensors(), file.manifest)
"""


def anonymous(process: int | str) -> int:
    """Bytes of memory that a process has for itself, without files that are mapped; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended, and its parent has collected it
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells memory from mapped files")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    """Of 24 tensors of 3 MB: packing, checking and unpacking together take less than all of them."""
    from safetensors.torch import save_file

    size = (750, 1000)
    for number in range(6):
        weights = {f"{number}.{k}": torch.randn(size) for k in range(4)}
        save_file(weights, tmp_path / f"{number}.safetensors")
    child, most = forked.Child(_MEMORY, tmp_path, str(tmp_path)), 0
    try:
        while (code := child.wait(0.002)) is None:
            most = max(most, anonymous(child.pid))
        assert code == 0, child.said()
    finally:
        child.kill()
    whole, grown = 24 * 4 * size[0] * size[1], most - int(child.said())
    assert 0 < grown < 0.7 * whole, f"{grown / 1e6:.0f} MB for {whole / 1e6:.0f} MB"


def test_damaged_files_end_in_one_error_in_time(tmp_path: Path) -> None:
    pr.pack(resnet(), tmp_path / "a.pare")
    data = (tmp_path / "a.pare").read_bytes()
    for cut in (0, 5, 8, len(data) // 2, len(data) - 1):
        (tmp_path / "b.pare").write_bytes(data[:cut])
        started = time.process_time()
        with pytest.raises(pr.PareError):
            pr.unpack(resnet, tmp_path / "b.pare")
        assert time.process_time() - started < 1.0
