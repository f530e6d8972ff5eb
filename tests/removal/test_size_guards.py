"""Networks in graph form at other sizes than that of the example: right, or refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.removal import graph_form
from paring.removal.graph_net import GraphNet
from paring.removal.rewrite import RewriteError


class Encoder(nn.Module):
    """A transformer of torch, whose heads cannot go in module form."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 16), nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        out: Tensor = self.out(self.layers(h))
        return out


class Deciding(nn.Module):
    """Its heads are written into the forward, and what it computes depends on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)).view(x.shape[0], x.shape[1], 4, 3)
        if x.shape[1] % 2:
            h = 2 * h
        if x.shape[1] > 20:
            h = h.flip(1)
        out: Tensor = self.b(h).sum(2)
        return out


def closed(net: nn.Module, rows: slice) -> nn.Module:
    """The same with units that are zero."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_weight[32:][rows] = 0
                module.in_proj_bias[32:][rows] = 0
    return net


def small_encoder() -> tuple[nn.Module, GraphNet]:
    torch.manual_seed(0)
    net = closed(Encoder(), slice(0, 4)).double().eval()
    small, report = pr.compact(net, torch.randint(0, 30, (2, 9)))
    assert isinstance(small, GraphNet)
    assert any("it takes (batch, n1)" in note for note in report.notes)
    assert report.parameters[1] < report.parameters[0]
    return net, small


def same(net: nn.Module, small: nn.Module, x: Tensor) -> bool:
    return bool(torch.allclose(net(x), small(x), atol=1e-10))


def test_lengths_stay_free_in_memory_in_files_and_while_training(tmp_path: Path) -> None:
    net, small = small_encoder()
    pr.save(small, tmp_path / "a")
    for one in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), pr.load(net, tmp_path / "a").double()):
        for batch, length in ((1, 2), (3, 9), (2, 5), (2, 17), (1, 40)):
            assert same(net, one, torch.randint(0, 30, (batch, length)))
    small.train()
    small(torch.randint(0, 30, (2, 13))).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_graph_forms_are_compiled_and_exported_at_free_sizes() -> None:
    net, small = small_encoder()
    fast = torch.compile(small, backend="eager", fullgraph=True)
    for length in (9, 5, 12):
        assert same(net, fast, torch.randint(0, 30, (2, length)))
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(small, (torch.randint(0, 30, (2, 9)),), dynamic_shapes=(free,), strict=False)
    assert same(net, program.module(), torch.randint(0, 30, (3, 7)))


def test_what_the_forward_decides_by_a_size_is_kept_or_refused() -> None:
    torch.manual_seed(0)
    net = Deciding().double().eval()
    with torch.no_grad():
        net.a.weight[::3] = 0  # the same one of every head
        net.a.bias[::3] = 0
    small, _ = pr.compact(net, torch.randn(2, 6, 5, dtype=torch.float64))
    assert isinstance(small, GraphNet)
    assert small.a.out_features == 8
    for length in range(2, 25):
        x = torch.randn(3, length, 5, dtype=torch.float64)
        if length % 2 == 0 and length <= 20:
            assert same(net, small, x)
            continue
        with pytest.raises(ValueError, match=r"computes something else for inputs of \(3, \d+, 5\)"):
            small(x)


def test_where_sizes_cannot_be_free_the_batch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graph_form.taken

    def fixed(inputs: Any, program: Any) -> Any:
        shapes, guards = real(inputs, program)
        if any(isinstance(shape, tuple) and isinstance(shape[1], str) for shape in shapes):
            raise RewriteError("not understood")
        return shapes, guards

    monkeypatch.setattr(graph_form, "taken", fixed)
    torch.manual_seed(0)
    net = closed(Encoder(), slice(0, 4)).double().eval()
    small, report = pr.compact(net, torch.randint(0, 30, (2, 9)))
    assert any("it takes (batch, 9)" in note for note in report.notes)
    assert same(net, small, torch.randint(0, 30, (5, 9)))
    with pytest.raises(ValueError, match=r"takes \(batch, 9\), not \(2, 8\)"):
        small(torch.randint(0, 30, (2, 8)))
