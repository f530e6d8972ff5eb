"""Networks that are called with keyword arguments: looked at, made smaller, saved and called as the user calls them."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import gates
from paring.cost import latency
from paring.removal import compact
from paring.removal.graph_net import GraphNet

pytestmark = [BY_HAND, CUT_SHORT]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, more: dict[str, Tensor] | None = None) -> Tensor:
        h = self.a(x).relu()
        y: Tensor = self.b(h if scale is None else h * scale)
        return y if more is None else y + more["shift"]


class Heads(nn.Module):
    """Sizes in the forward, so that it becomes a graph; a keyword-only argument, and one that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, unused: Tensor | None = None, bias: Tensor | None = None, *, gain: Tensor) -> Tensor:
        assert unused is None
        q, v = (layer(x).view(x.shape[0], 5, 4, 2).transpose(1, 2) for layer in (self.q, self.v))
        weight = q @ q.mT if bias is None else q @ q.mT + bias
        out: Tensor = self.out((torch.softmax(weight, -1) @ v).transpose(1, 2).reshape(x.shape[0], 5, 8)) * gain
        return out


def example(rows: int = 3) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(rows)
    x, scale, shift = (torch.rand(rows, n, generator=draw) for n in (4, 1, 1))
    return {"x": x, "scale": scale, "more": {"shift": shift}}


def tokens(rows: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    shapes = {"gain": (rows, 5, 3), "x": (rows, 5, 6), "bias": (rows, 1, 5, 5)}  # not in the order of the signature
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


def half_dead(net: nn.Module, *layers: str) -> nn.Module:
    with torch.no_grad():
        for name in layers:
            for leaf in net.get_submodule(name).parameters():
                leaf[:4] = 0
    return net.eval()


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_compact(kind: type) -> None:
    net = half_dead(Scaled(), "a")
    given = kind(example())
    small, report = compact(net, given)
    assert small.a.out_features == 4
    assert not report.rolled_back
    for other in (example(), example(5)):
        assert torch.allclose(small(**other), net(**other), atol=1e-6)
    assert given.keys() == example().keys()


def test_graph_form(tmp_path: Path) -> None:
    net = half_dead(Heads(), "q", "v")
    given = tokens()
    small, _ = pr.compact(net, given)
    assert isinstance(small, GraphNet)
    assert small.q.out_features == 4
    path = tmp_path / "net.safetensors"
    pr.save(small, path)
    for one in (small, pr.load(Heads, path).eval()):
        for other in (given, tokens(4)):
            x, bias, gain = other["x"], other["bias"], other["gain"]
            expected = net(**other)
            assert torch.allclose(one(**other), expected, atol=1e-5)
            assert torch.allclose(one(x, bias=bias, gain=gain), expected, atol=1e-5)
            assert torch.allclose(one(gain=gain, bias=bias, x=x), expected, atol=1e-5)
        with pytest.raises(TypeError, match="captured with gain; pass what"):
            one(x, bias=bias)
        with pytest.raises(TypeError, match="captured without unused"):
            one(x, bias, gain=gain)
        with pytest.raises(TypeError, match="captured without mask"):
            one(**given, mask=x)
        with pytest.raises(TypeError, match="got x twice"):
            one(x, x=x, bias=bias, gain=gain)
    again, report = compact(small, given, form="graph")
    assert report.parameters[0] == report.parameters[1]
    assert torch.allclose(again(**given), net(**given), atol=1e-5)


def test_tables() -> None:
    net, given = Scaled(), example()
    assert pr.report(net, given).total["macs"] == 4 * 8 + 8 * 2
    timed = pr.report(net, given, latency=True)
    assert timed.batch == 3
    assert pr.groups(net, given).rows[0].layers == ("a",)
    assert latency({"net": net}, given, batch=2, repeats=2)["net"].median_s > 0


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    pr.to_onnx(Heads(), tokens(), path)
    assert {one.name for one in onnx.load(path).graph.input} == {"x", "bias", "gain"}


def test_training_and_finishing() -> None:
    torch.manual_seed(0)
    net, given = Scaled(), example()
    run = pr.attach(net, pr.L0(price=1e-3, at="units:a"), given, steps=4)
    conditional = run.conditional()
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1))
    for _ in range(4):
        opt.zero_grad()
        (conditional(**given).square().mean() + run.penalty()).backward()
        run.step(opt)
    with torch.no_grad():
        for _, _, gate in gates(net):
            gate.log_alpha[:3] = -10
            gate.log_alpha[3:] = 10
    small = run.finish(early=True)
    assert small.a.out_features == 5
    assert torch.allclose(small(**given), net.eval()(**given), atol=1e-5)


def test_shrinking_while_training() -> None:
    torch.manual_seed(0)
    net, given = Scaled(), example()
    run = pr.attach(
        net,
        pr.Stack(pr.L0(price=1e-9, at="units:a"), pr.Shrink(every=1, multiple_of=1, saving=0.1, measure=False)),
        given,
    )
    opt = torch.optim.SGD(run.parameter_groups(lr=1e-3))
    with torch.no_grad():
        for _, _, gate in gates(net):
            gate.log_alpha[:4] = -60
            gate.log_alpha[4:] = 60
            gate.freeze()
    opt.zero_grad()
    net(**given).square().mean().backward()
    run.step(opt)
    assert net.a.out_features == 4, run.shrinks


@pytest.mark.parametrize("score", ["snip", "synflow"])
def test_scores(score: Any) -> None:
    net, given = Scaled(), example()
    method = pr.AtInit(score=score, density=0.5)
    pr.attach(net, method, given, loss=lambda n: n(**given).square().mean()).finish(early=True)
