"""Layers that hold weights and take no gate are named, with their share; what the user left out himself is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import paring as pr
from paring.core import attached
from paring.testing import Chain, chain_batch


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.cells = kind(4, 16, batch_first=True)
        self.up, self.fc = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.cells(x)[0][:, -1]).relu())


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.att(x, x, x)[0].mean(1))


class Odd(nn.Module):
    """A table of its own, a weight read without its layer, a parametrised and a transposed layer, one nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 5, 4))
        self.scale = nn.Parameter(torch.ones(1, 1, 4))  # one dimension: no case
        self.borrowed, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
        self.normed = weight_norm(nn.Linear(4, 4))
        self.wide = nn.ConvTranspose1d(5, 2, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear((x + self.table) * self.scale, self.borrowed.weight)
        return self.fc(self.wide(self.normed(x).relu()).mean(1))


def said(net: nn.Module, method: pr.Method) -> list[str]:
    """What attaching says; each line is a warning too."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loss = lambda copy_: copy_(torch.randn(2, 5, 4)).pow(2).mean()  # noqa: E731
        pr.attach(net, method, torch.randn(2, 5, 4), steps=20, epoch_steps=5, loss=loss)
    lines = [str(one.message) for one in found if issubclass(one.category, pr.ParingWarning)]
    assert lines == attached(net).said
    return lines


def share(net: nn.Module, *names: str) -> str:
    held = dict(net.named_parameters())
    return f"{100 * sum(held[name].numel() for name in names) / sum(p.numel() for p in held.values()):.3g} %"


METHODS = [
    pr.IMP(prunings=1),
    pr.GMP(density=0.5),
    pr.RigL(density=0.5, every=5),
    pr.methods.SET(density=0.5),
    pr.methods.DNW(density=0.5),
    pr.methods.AtInit(score="magnitude", density=0.5),
    pr.methods.Masked(),
    pr.methods.ContinuousSparsification(density=0.5, rewind=1),
    pr.methods.STR(s_init=-10.0),
    pr.methods.SparseVD(),
    pr.methods.Supermask(),
    pr.methods.EdgePopup(),
    pr.L0(price=1e-3, at="weights"),
    pr.L0(price=1e-3, at="units"),
]


class Own(nn.LSTM):
    """A recurrent layer with a forward that nobody knows."""


every = pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{type(method).__name__} {method.at}")


@every
def test_every_method_names_a_recurrent_layer_that_takes_no_gate(method: pr.Method) -> None:
    net = Recurrent(Own)
    weights = share(net, "cells.weight_ih_l0", "cells.weight_hh_l0")
    (line,) = said(net, method)
    assert line.startswith("1 layer takes no gate at ")
    assert f", with {weights} of this Recurrent's parameters" in line
    assert "cells (Own): " in line
    assert line.endswith(":!cells'")


@pytest.mark.parametrize("make", [Recurrent, lambda: Recurrent(nn.GRU), Attentive], ids=["lstm", "gru", "attention"])
@every
def test_packed_weights_that_take_gates_are_not_named(method: pr.Method, make: Callable[[], nn.Module]) -> None:
    if "weights" in str(method.at):  # type: ignore[attr-defined]
        assert said(make(), method) == []


@pytest.mark.parametrize(
    "at",
    ["weights:!cells", "weights:Linear", ["weights:fc", "weights:up"], "weights:!Own", "weights:!cells.weight_*"],
)
def test_what_the_user_leaves_out_is_not_named(at: str | list[str]) -> None:
    assert said(Recurrent(Own), pr.GMP(density=0.5, at=at)) == []
    assert said(Recurrent(), pr.GMP(density=0.5, at="weights:cells.weight_hh*")) == []


def test_layers_that_methods_leave_alone_by_design_are_not_named() -> None:
    for method in (pr.L0(price=1e-3, at="units"), pr.L0(price=1e-3, at="inputs"), pr.GMP(density=0.5)):
        net = Chain()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pr.attach(net, method, chain_batch(2)[0], steps=10)
        assert attached(net).said == []
    assert said(Attentive(), pr.L0(price=1e-3, at="heads")) == []


def test_packed_weights_are_named_where_something_is_in_the_way() -> None:
    net = Attentive()
    net.att.forward = net.att.forward  # type: ignore[method-assign]
    (line,) = said(net, pr.GMP(density=0.5))
    assert line.startswith("1 layer takes no gate at 'weights'")
    assert share(net, "att.in_proj_weight", "att.out_proj.weight") in line
    assert "att (MultiheadAttention): its forward was replaced on the instance" in line
    assert line.endswith("at='weights:!att'")
    tied = nn.Sequential(nn.RNNCell(4, 4), nn.RNNCell(4, 4), nn.Linear(4, 3))
    tied[1].weight_hh = tied[0].weight_hh
    with pytest.warns(pr.ParingWarning):
        pr.attach(tied, pr.GMP(density=0.5), torch.randn(2, 4), steps=2)
    (line,) = attached(tied).said
    assert "0 (RNNCell): its weight is shared with '1'" in line
    assert line.startswith("1 layer"), "the weight that both have is named once"
    computed = nn.Sequential(nn.RNNCell(4, 4), nn.Linear(4, 3))
    prune.identity(computed[0], "weight_hh")
    with pytest.warns(pr.ParingWarning):
        pr.attach(computed, pr.GMP(density=0.5), torch.randn(2, 4), steps=2)
    (line,) = attached(computed).said
    assert share(computed, "0.weight_hh_orig") in line
    assert "0 (RNNCell): the weight of '0.weight_hh' is computed from other parameters" in line


def test_other_holders_of_weights_are_named_with_the_reason() -> None:
    net = Odd()
    (line,) = said(net, pr.GMP(density=0.5))
    for part in (
        "the network itself (Odd): a parameter of its own, and no layer's weight",
        "borrowed (Linear): the weight of 'borrowed' is used without calling the module",
        "spare (Linear): the captured forward does not call it as a layer",
        "wide (ConvTranspose1d): its class ConvTranspose1d is not a stock layer",
        "normed.parametrizations.weight (ParametrizationList): a parameter of its own, and no layer's weight",
    ):
        assert part in line, part
    assert line.startswith("5 layers")
    advice = line.rpartition("at='")[2].removesuffix("'")
    assert said(Odd(), pr.GMP(density=0.5, at=advice)) == [], "as the message says"


def test_what_a_stack_says_twice() -> None:
    lines = said(Recurrent(Own), pr.Stack(pr.GMP(density=0.5), pr.L0(price=1e-3, at="units")))
    assert ["(Own)" in line for line in lines] == [True, True]
    assert "'weights'" in lines[0]
    assert "'units'" in lines[1]
    net = Recurrent(Own)
    with pytest.warns(pr.ParingWarning, match="cells"):
        run = pr.attach(net, pr.GMP(density=0.5), torch.randn(2, 5, 4), steps=1)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1))
    net(torch.randn(2, 5, 4)).sum().backward()
    run.step(opt)
    run.finish()
    assert any("cells (Own)" in note for note in run.report.notes)
