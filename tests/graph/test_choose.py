"""The graph form takes back what does not verify, like the module form, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.graph.test_shrink import gap
from tests.graph.transformers_zoo import Attention
from torch import Tensor, nn

from paring.graph import GraphFormError, compact, graph_form, shrink
from paring.graph.capture import Captured
from paring.graph.graph_form import Keeps
from paring.graph.graph_net import Script
from paring.graph.interpret import Interpretation
from paring.graph.rewrite import RewriteError


class Net(nn.Module):
    """Heads by a size in the forward, then hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.wide, self.last = Attention(16, 4), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.attention(x)).relu())


def biased(script: Callable[..., tuple[Script, str]]) -> Callable[..., tuple[Script, str]]:
    """A rewriting that goes wrong where the wide layer shrinks, once by an error and once in what is computed."""

    def wrong(captured: Captured, found: Interpretation, small: nn.Module, keeps: Keeps) -> tuple[Script, str]:
        made, changed = script(captured, found, small, keeps)
        if len(keeps.masks["wide"]) > int(keeps.masks["wide"].sum()):
            if not bool(keeps.masks["wide"][0]):
                raise RewriteError("not this one")
            made = replace(made, source=made.source.replace("relu.default", "neg.default"))
        return made, changed

    return wrong


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("first", [0, 4])
def test_the_graph_form_rolls_back(form: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_form, "_script", biased(graph_form._script))
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(2, 5, 16).double()
    with torch.no_grad():
        for m in (net.attention.q, net.attention.k, net.attention.v):
            m.weight[4:8], m.bias[4:8] = 0, 0
        net.wide.weight[first : first + 4], net.wide.bias[first : first + 4] = 0, 0
    small, report = shrink(net, x, form=form)
    assert report.form == "graph"
    assert list(report.rolled_back) == ["wide"]
    assert report.rolled_back["wide"].startswith("outputs differ" if first else "not this one")
    assert "rolled back wide" in str(report)
    assert small.attention.v.out_features == 12
    assert small.wide.out_features == 12
    assert gap(net, small, torch.randn(5, 5, 16).double()) < 1e-10


class Counted(Attention):
    """Has no graph for any batch: its size becomes a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), *x.shape[1:]))


def test_without_any_graph_form_the_module_form_rolls_back() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Counted(16, 4), nn.Linear(16, 8), nn.Linear(8, 2)).double().eval(), torch.randn(2, 3, 16)
    with torch.no_grad():
        for m in (net[0].q, net[0].k, net[0].v):
            m.weight[4:8], m.bias[4:8] = 0, 0
        net[1].weight[:3], net[1].bias[:3] = 0, 0
    small, report = shrink(net, x.double())
    assert report.form == "module"
    assert small[1].out_features == 5
    assert any("no graph form" in note and "len(x)" in note for note in report.notes)
    assert gap(net, small, x.double()) < 1e-10
    with pytest.raises(GraphFormError, match="len"):
        compact(net, x.double(), form="graph")
