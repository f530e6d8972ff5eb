"""Looking at networks: one at a time, on one thread, from any number of Python threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from marks import BY_HAND
from paring.analysis.alone import alone
from paring.bits import pack_bits
from paring.core import gates
from paring.hard import Sign
from paring.testing.nets import Chain

pytestmark = BY_HAND


@pytest.fixture
def _three_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def in_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("_three_threads")
def test_one_thread_meanwhile_and_for_this_thread_alone() -> None:
    with alone():
        assert torch.get_num_threads() == 1
        with alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        assert in_new_thread() == 3
    assert torch.get_num_threads() == 3
    assert in_new_thread() == 3


@pytest.mark.usefixtures("_three_threads")
def test_restored_after_errors() -> None:
    @alone()
    def fails() -> None:
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_num_threads() == 3
    with pytest.raises(pr.CaptureError):
        pr.compact(nn.Linear(3, 2), torch.zeros(1, 5))
    assert torch.get_num_threads() == 3


def test_one_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter(_: int) -> None:
        for _ in range(20):
            with alone():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert max(most) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons advise against it
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_forked_process_does_not_wait_for_its_parents_threads() -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with alone():
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        from paring.analysis import alone as module

        os._exit(0 if module._lock.acquire(blocking=False) else 1)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, x, x)[0].mean(1)
        out: Tensor = self.fc2(torch.relu(self.fc1(y)))
        return out


class Heads(nn.Module):
    """Sizes in the forward, so that it becomes a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, v = (layer(x).view(x.shape[0], 5, 4, 2).transpose(1, 2) for layer in (self.q, self.v))
        out: Tensor = self.out((torch.softmax(q @ q.mT, -1) @ v).transpose(1, 2).reshape(x.shape[0], 5, 8))
        return out


def dead(net: nn.Module, *layers: str) -> nn.Module:
    with torch.no_grad():
        for name in layers:
            layer = net.get_submodule(name)
            layer.weight[:2] = 0  # type: ignore[index, operator]
            if layer.bias is not None:
                layer.bias[:2] = 0  # type: ignore[index, operator]
    return net.eval()


def compacts(net: nn.Module, x: Tensor, layer: str, **settings: object) -> Callable[[], None]:
    """Compacts again and again, and compares."""
    torch.manual_seed(0)
    before = net(x).detach()

    def run() -> None:
        for _ in range(2):
            small, _ = pr.compact(net, x, **settings)  # type: ignore[arg-type]
            assert len(small.get_submodule(layer).weight) == len(net.get_submodule(layer).weight) - 2  # type: ignore[arg-type]
            assert torch.allclose(small(x), before, atol=1e-5)

    return run


def finishes(net: nn.Module, x: Tensor) -> None:
    run = pr.attach(net, pr.L0(price=1e-3, at="units:conv1"), example=x)
    with torch.no_grad():
        for _, _, gate in gates(net):
            gate.log_alpha[:3] = -10  # type: ignore[index, operator]
    small = run.finish(early=True)
    assert len(small.conv1.weight) == 3  # type: ignore[arg-type, union-attr]
    macs, dense = pr.report(small, x).total["macs"], run.cost().macs
    assert macs is not None
    assert macs < dense
    assert len(pr.groups(small, x).rows) == 4


def onnx(net: nn.Module, x: Tensor, path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pr.to_onnx(net, x, path)
    assert path.stat().st_size > 0


def bits(x: Tensor) -> None:
    pytest.importorskip("numba")
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), Sign(), nn.Linear(16, 16), Sign(), nn.Linear(16, 3))
    with torch.no_grad():
        net[2].weight.sign_()  # type: ignore[operator, union-attr]
    packed = pack_bits(net.eval(), x)
    assert torch.allclose(packed(x), net(x), atol=1e-4)


def loads(net: nn.Module, x: Tensor, path: Path) -> None:
    small, _ = pr.compact(net, x, form="graph")
    pr.save(small, path)
    loaded = pr.load(Heads, path).eval()
    assert torch.allclose(loaded(x), net(x), atol=1e-5)


@pytest.mark.usefixtures("_three_threads")
def test_eight_threads(tmp_path: Path) -> None:
    """Each of eight Python threads does its own with its own network, and all is right and as before."""
    torch.manual_seed(0)
    image, row, tokens = torch.randn(2, 2, 8, 8), torch.randn(2, 6), torch.randn(2, 5, 6)
    dense = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    normed = nn.Sequential(nn.Linear(6, 7, bias=False), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 3))
    fast = torch.backends.mha.get_fastpath_enabled()
    jobs = [
        compacts(dead(Chain(), "conv2"), image, "conv2"),
        compacts(dead(dense, "0"), row, "0"),
        compacts(dead(normed, "0"), row, "0", mode="eval"),
        compacts(dead(Attends(), "fc1"), torch.randn(2, 5, 8), "fc1"),
        lambda: finishes(Chain(), image),
        lambda: bits(row),
        lambda: loads(dead(Heads(), "q", "v"), tokens, tmp_path / "net.safetensors"),
    ]
    if torch.__version__ >= (2, 7):  # the lowest for `to_onnx`
        jobs.append(lambda: onnx(dead(Chain(), "conv1"), image, tmp_path / "net.onnx"))
    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    assert torch.get_num_threads() == 3
    assert torch.backends.mha.get_fastpath_enabled() == fast
