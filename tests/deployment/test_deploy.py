"""Which form each layer takes; times are made up where a choice depends on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.core.answers_only import AnswersOnly
from paring.cost import Latency
from paring.deployment import DeployError
from paring.deployment.sparse_layers import SparseConv, SparseLinear
from paring.deployment.torch_sparse import TorchSparseLinear
from paring.hard import Sign
from tests.deployment.test_sparse_layers import close, thinned

Cost = Callable[[nn.Module], float]


def sparse_parts(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, AnswersOnly)]


def timed(monkeypatch: pytest.MonkeyPatch, cost: Cost) -> None:
    """Let networks take as long as `cost` says."""

    def latency(nets: Mapping[str, nn.Module], example: Any, *, threads: int, repeats: int) -> dict[str, Latency]:
        seconds = {name: cost(net) for name, net in nets.items()}
        return {name: Latency(one, one, one, (one,) * repeats) for name, one in seconds.items()}

    monkeypatch.setattr(import_module("paring.deployment.deploy"), "latency", latency)


def fewer_is_faster(net: nn.Module) -> float:
    """CSR takes half as long as dense, packed rows a third."""
    if isinstance(net, nn.Linear | nn.Conv2d):
        return 1.0
    if isinstance(net, TorchSparseLinear):
        return 0.5
    return 1.0 / 3 if isinstance(net, AnswersOnly) else 10.0 - len(sparse_parts(net))


def network(share: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        thinned(nn.Conv2d(1, 4, 3, padding=1), share), nn.ReLU(), nn.Flatten(), thinned(nn.Linear(256, 20), share),
        nn.ReLU(), nn.Linear(20, 3),
    )  # fmt: skip


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_fastest_form_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, fewer_is_faster)
    net = network()
    before = copy.deepcopy(net.state_dict())
    fast, report = pr.deploy(net, X)
    assert [type(part) for part in sparse_parts(fast)] == [SparseConv, SparseLinear]
    close(fast(X), net.eval()(X))
    assert [layer.form for layer in report.layers] == ["packed", "packed", "dense"]
    assert report.layers[2].reason == "few zeros"
    assert report.layers[1].times == {"dense": 1e6, "CSR (MKL)": 5e5, "packed": 1e6 / 3}
    assert report.after < report.before == 4 * sum(p.numel() for p in net.parameters())
    assert report.comparison.ratio == 0.8
    assert "3.0 times as fast" in str(report)
    assert "10,000,000 -> 8,000,000 µs" in str(report)
    assert all(type(module) in (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten) for module in net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in fast.parameters())
    assert net[5].weight.requires_grad


@pytest.mark.parametrize(("allowed", "kept"), [(0, 0), (1, 1), (2, 2)])
def test_layers_go_back_until_the_network_is_faster(allowed: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(net: nn.Module) -> float:
        if isinstance(net, nn.Sequential):
            return 10.0 if len(sparse_parts(net)) > allowed else fewer_is_faster(net)
        return fewer_is_faster(net) * (2 if isinstance(net, SparseConv) else 1)  # gains least

    timed(monkeypatch, cost)
    fast, report = pr.deploy(network(), X)
    assert len(sparse_parts(fast)) == kept
    assert [layer.reason for layer in report.layers].count("in the network no faster") == 2 - kept
    assert report.comparison.ratio == 1 - kept / 10
    if kept == 1:
        assert type(fast[0]) is nn.Conv2d
    if kept == 0:
        assert report.taken_us == report.dense_us


def test_a_form_that_is_no_faster_or_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda net: 1.0)
    fast, report = pr.deploy(network(), X)
    assert not sparse_parts(fast)
    assert report.layers[0].reason == "dense is as fast"
    timed(monkeypatch, fewer_is_faster)
    monkeypatch.setattr(
        SparseConv, "forward", lambda self, input: 1.001 * nn.Conv2d(1, 4, 3, padding=1)(input).detach()
    )
    fast, report = pr.deploy(network(), X)
    assert report.layers[0].reason.startswith("packed: outputs differ by")
    assert [type(part) for part in sparse_parts(fast)] == [SparseLinear]


def test_a_network_that_differs_gets_its_layers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = thinned(nn.Linear(8, 8), 0.3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + (type(self.fc) is not nn.Linear)

    timed(monkeypatch, fewer_is_faster)
    fast, report = pr.deploy(Odd(), torch.randn(2, 8))
    assert not sparse_parts(fast)
    assert report.layers[0].reason.startswith("the network's outputs differ by")


def test_layers_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, fewer_is_faster)

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.hooked, self.shared = thinned(nn.Linear(8, 8), 0.2), thinned(nn.Linear(8, 8), 0.2)
            self.again = self.shared
            self.hooked.register_forward_hook(lambda module, args, out: out)
            self.circular = thinned(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), 0.2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.attention(x, x, x)[0] + self.again(self.shared(self.hooked(x)))
            return self.circular(x)

    net = Several()
    thinned(net.attention.out_proj, 0.2)
    fast, report = pr.deploy(net, torch.randn(2, 4, 8))
    said = {layer.name: layer.reason for layer in report.layers}
    assert said == {
        "attention.out_proj": "its own forward was not called on the example",
        "hooked": "it has hooks",
        "shared": "",
        "circular": "padding by circular",
    }
    assert fast.shared is fast.again
    assert isinstance(fast.shared, SparseLinear)
    _, report = pr.deploy(nn.Sequential(thinned(nn.Linear(8, 8), 0.2)).double(), torch.randn(2, 8).double())
    assert report.layers[0].reason == "float64 on cpu: only float32 on the CPU"


@pytest.mark.parametrize("fast_path", [True, False])
def test_layers_that_a_fast_path_reads_past_stay(fast_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, fewer_is_faster)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    thinned(net.linear1, 0.2)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        fast, report = pr.deploy(net, torch.randn(2, 4, 8))
        x = torch.randn(3, 4, 8)
        with torch.no_grad():
            close(fast(x), net(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert [layer.form for layer in report.layers if layer.name == "linear1"] == ["dense" if fast_path else "packed"]


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, fewer_is_faster)
    monkeypatch.setattr("paring.deployment.layer_forms._compiles", lambda: False)
    fast, report = pr.deploy(network(), X)
    assert [type(part) for part in sparse_parts(fast)] == [TorchSparseLinear]
    assert "numba" in report.layers[0].reason


def test_a_network_of_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda net: 0.1 if type(net).__name__ == "BitNet" else fewer_is_faster(net))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), Sign(), nn.Linear(64, 64, bias=False), Sign(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        net[2].weight.copy_(net[2].weight.sign())
    fast, report = pr.deploy(net, torch.randn(4, 8))
    assert type(fast).__name__ == "BitNet"
    assert "the whole network runs on bits" in str(report)
    timed(monkeypatch, fewer_is_faster)
    fast, report = pr.deploy(net, torch.randn(4, 8))
    assert type(fast) is nn.Sequential
    assert "bits: 10,000,000 µs, no faster" in str(report)
    with torch.no_grad():
        net[2].weight.mul_(torch.rand(64, 64))
    assert "bits: no layer can run on bits" in str(pr.deploy(net, torch.randn(4, 8))[1])


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    timed(monkeypatch, fewer_is_faster)
    net = network()
    fast, _ = pr.deploy(net, X)
    for refused in (
        lambda: pr.deploy(fast, X),
        lambda: fast.train(),
        lambda: fast.state_dict(),
        lambda: torch.save(fast, tmp_path / "net.pt"),
        lambda: pr.compact(fast, X),
        lambda: pr.save(fast, tmp_path / "net.safetensors"),
        lambda: pr.pack(fast, tmp_path / "net.pare"),
        lambda: pr.to_onnx(fast, X, tmp_path / "net.onnx"),
    ):
        with pytest.raises(ValueError, match="was given, and deploy that again"):
            refused()
    with pytest.raises(DeployError, match="no gradient"):
        fast(X.clone().requires_grad_())
    with pytest.raises(DeployError, match="fails on the example: RuntimeError"):
        pr.deploy(net, torch.randn(2, 1, 9, 9))
    with pytest.raises(DeployError, match="without gates"):
        pr.deploy(pr.attach(network(), pr.L0(price=1e-4), example=X, steps=3).net, X)
    with pytest.raises(ValueError, match="repeats is 0"):
        pr.deploy(net, X, repeats=0)
    with pytest.raises(pr.CaptureError, match="empty"):
        pr.deploy(net, X[:0])


@pytest.mark.slow
def test_a_layer_with_few_weights_is_faster() -> None:
    """By the clock: about ten times, so that a loaded machine does not matter."""
    net = nn.Sequential(thinned(nn.Linear(1024, 1024), 0.02))
    fast, report = pr.deploy(net, torch.randn(16, 1024), threads=1, repeats=10)
    assert report.layers[0].form in ("packed", "CSR (MKL)")
    assert report.comparison.high < 1
    assert report.comparison.by == "CPU time"
    assert sparse_parts(fast)
