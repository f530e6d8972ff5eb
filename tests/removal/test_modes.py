"""One capture serves both modes where train mode is shown to be the same function; whatever differs gets its own."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis.capture import capture
from paring.core import Inputs
from paring.removal import compact, graph_form
from paring.removal.graph_form import Captures
from paring.removal.modes import same_in_both_modes
from tests.removal.test_compact import gap
from tests.removal.transformers_zoo import ViT


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad * 0.5


class Untouched(torch.autograd.Function):
    """As `Scaled`, without an operation."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad * 0.5


class Differs(nn.Module):
    """A small network that does something else in train mode, or the same in both ("same", "none", "frozen")."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()))
        self.off = nn.Dropout(0.0)
        self.extra = nn.Dropout(0.3) if how == "dropout" else nn.BatchNorm1d(6) if how == "norm" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.off(self.extra(self.first(x)))
        if self.how == "both noisy":
            h = h + torch.rand(())
        if not self.training or self.how in ("same", "dropout", "norm", "both noisy"):
            return self.last(h.relu())
        match self.how:
            case "functional dropout":
                h = F.dropout(h, 0.2)
            case "random":
                torch.rand(3)
            case "python random":
                random.random()
            case "numpy random":
                np.random.random()  # noqa: NPY002
            case "buffer":
                self.count.add_(1.0)
            case "another buffer":
                self.count = self.count + 1.0
            case "detach":
                return self.last(h.relu().detach())
            case "straight through":
                return self.last(h.relu() + (h - h.detach()))
            case "gradient scaling":
                h = Scaled.apply(h)
            case "gradient alone":
                h = Untouched.apply(h)
            case "hook":
                if h.requires_grad:
                    h.register_hook(lambda grad: 0.5 * grad)
            case "no gradient":
                with torch.no_grad():
                    return self.last(h.relu())
            case "structure":
                return self.last(h.relu()), h
            case "out of range":
                h = h.clamp(-1e6, 1e6)
            case "number":
                return self.last(F.leaky_relu(h, 1e-30))
            case "fails":
                raise RuntimeError("no train mode")
        return self.last(h.relu())


HOW = [
    "dropout",
    "norm",
    "both noisy",
    "functional dropout",
    "random",
    "python random",
    "numpy random",
    "buffer",
    "another buffer",
    "detach",
    "straight through",
    "gradient scaling",
    "gradient alone",
    "hook",
    "no gradient",
    "structure",
    "out of range",
    "number",
    "fails",
]


def state(net: nn.Module) -> list[object]:
    torches = [torch.get_rng_state().tolist(), *(t.tolist() for t in net.state_dict().values())]
    flags = [(p.requires_grad, p.grad) for p in net.parameters()]
    numbers = str(np.random.get_state())  # noqa: NPY002
    return [*torches, random.getstate(), numbers, flags, [m.training for m in net.modules()]]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_whatever_differs_is_told_apart(how: str, training: bool) -> None:
    torch.manual_seed(0)
    net = Differs(how).train(training)
    before = state(net)
    assert not same_in_both_modes(net, Inputs.of(torch.randn(3, 4)))
    torch.manual_seed(0)
    Differs(how)
    assert state(net) == before


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_is_seen_as_the_same(training: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    for net, x in ((Differs("same"), torch.randn(3, 4)), (ViT(), torch.randn(2, 3, 8, 8))):
        net.train(training).requires_grad_(not frozen)
        x_before, before = x.clone(), state(net)
        assert same_in_both_modes(net, Inputs.of(x))
        assert state(net) == before
        assert torch.equal(x, x_before)


def test_frozen_parameters_do_not_hide_a_difference() -> None:
    torch.manual_seed(0)
    net = Differs("detach").requires_grad_(False)
    assert not same_in_both_modes(net, Inputs.of(torch.randn(3, 4)))


def test_one_capture_serves_both_modes_and_gives_the_same_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = ViT().eval(), torch.randn(2, 3, 8, 8)
    net.blocks[0].attention.v.weight.data[:4], net.blocks[0].attention.v.bias.data[:4] = 0, 0
    captures, seen = Captures(net, x), []
    assert captures.of(True, torch.float32) is captures.of(False, torch.float32)

    def counted(*args: object, **kwargs: object) -> object:
        seen.append(kwargs)
        return capture(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(graph_form, "capture", counted)
    small, report = compact(net, x, form="graph")
    monkeypatch.setattr(graph_form, "same_in_both_modes", lambda net, inputs: False)
    naive, told = compact(net, x, form="graph")
    assert len(seen) == 1 + 2
    assert report == told
    assert small._scripts[True].source == naive._scripts[True].source
    assert small._scripts[False].source == naive._scripts[False].source
    again = copy.deepcopy(small).train()
    assert gap(copy.deepcopy(net).train(), again, x) < 1e-5


@pytest.mark.parametrize("how", ["functional dropout", "detach", "out of range"])
def test_the_graph_of_train_mode_stays_its_own(how: str) -> None:
    torch.manual_seed(0)
    captures = Captures(Differs(how).eval(), torch.randn(3, 4))
    assert captures.of(True, torch.float32) is not captures.of(False, torch.float32)
