"""What `tests/captures.py` shares is what a fresh capture gives, and it tells networks apart by all that a forward can read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.analysis.capture import _export
from paring.core import Inputs
from paring.testing import ZOO, Chain, ModuleChain, Row, chain_batch
from tests.captures import Shared, UnlikeAny, structure

X = Inputs.of(torch.zeros(2, 2, 8, 8))


def graph(program: Any) -> tuple[object, ...]:
    """What removal reads of a captured network: operations, shapes, modules and names."""
    nodes = [
        (node.name, node.op, str(node.target), str(node.args), str(node.kwargs), str(node.meta.get("nn_module_stack")))
        for node in program.graph.nodes
    ]
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in program.graph.nodes]
    signature = program.graph_signature
    return nodes, shapes, dict(signature.inputs_to_parameters), dict(signature.inputs_to_buffers)


@pytest.mark.parametrize("row", [row for row in ZOO if row.gated][1::9], ids=lambda row: row.name)
def test_what_is_shared_is_what_a_fresh_capture_gives(row: Row) -> None:
    """Two networks with other weights, before and after gates are hung in: one capture each, equal to one of its own."""
    asked: list[nn.Module] = []

    def export(net: nn.Module, inputs: Inputs, dynamic: bool, sizes: Sequence[int]) -> Any:
        asked.append(net)
        return _export(net, inputs, dynamic, sizes)

    shared = Shared(export)
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = row.net()
        for dynamic in (False, True):
            assert graph(shared(net, X, dynamic)) == graph(_export(net, X, dynamic))
        x, y = chain_batch(4)
        run = pr.attach(
            net, row.make(), x, steps=40, epoch_steps=10, loss=lambda one, x=x, y=y: F.cross_entropy(one(x), y)
        )
        small = run.finish(copy.deepcopy(net), early=True)
        assert graph(shared(small, X, False)) == graph(_export(small, X, False))
    assert len(asked) in (3, 4)  # what was removed may differ, and then the structure does


@pytest.mark.parametrize("row", [row for row in ZOO if row.gated][1::9], ids=lambda row: row.name)
def test_what_attach_captures_is_shared(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """`attach` leaves its method and hooks of state dicts in a network before it captures it; no forward reads them."""
    asked: list[nn.Module] = []

    def export(net: nn.Module, inputs: Inputs, dynamic: bool, sizes: Sequence[int]) -> Any:
        asked.append(net)
        return _export(net, inputs, dynamic, sizes)

    monkeypatch.setattr("paring.analysis.capture._export", Shared(export))
    x = chain_batch(4)[0]
    for method in (pr.GMP(density=0.5), row.make(), row.make()):
        pr.attach(row.net(), method, x, steps=40, epoch_steps=10, loss=lambda one: one(x).sum())
        assert len(asked) == 1


def evaluated(net: nn.Module) -> None:
    net.eval()


def one_evaluated(net: nn.Module) -> None:
    net.get_submodule("norm1").eval()


def strided(net: nn.Module) -> None:
    net.get_submodule("conv1").stride = (2, 2)


def nearly_zero(net: nn.Module) -> None:
    net.get_submodule("norm1").eps = -0.0


def tied(net: nn.Module) -> None:
    net.get_submodule("conv1").bias = net.get_submodule("norm1").bias


def same_module(net: nn.Module) -> None:
    net.relu2 = net.relu1


def frozen(net: nn.Module) -> None:
    net.get_submodule("fc1").weight.requires_grad_(False)


def doubled(net: nn.Module) -> None:
    net.double()


def noted(net: nn.Module) -> None:
    net.scale = 2.0  # type: ignore[assignment]


def other_class(net: nn.Module) -> None:
    net.relu1 = nn.GELU()


@pytest.mark.parametrize(
    "change",
    [evaluated, one_evaluated, strided, nearly_zero, tied, same_module, frozen, doubled, noted, other_class],
    ids=lambda change: change.__name__,
)
def test_what_a_forward_can_read_keeps_networks_apart(change: Callable[[nn.Module], None]) -> None:
    net, other = ModuleChain(), ModuleChain()
    net.norm1.eps = other.norm1.eps = 0.0
    assert structure(net, X) == structure(other, X)
    change(other)
    assert structure(net, X) != structure(other, X)


@pytest.mark.parametrize(
    "other",
    [Inputs.of(torch.zeros(3, 2, 8, 8)), Inputs.of(torch.zeros(2, 2, 8, 8).double()), Inputs.of({"x": X.args[0]})],
)
def test_other_inputs_keep_captures_apart(other: Inputs) -> None:
    assert structure(Chain(), X) != structure(Chain(), other)


def test_a_forward_that_was_exchanged_keeps_captures_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure(Chain(), X)
    monkeypatch.setattr(Chain, "forward", lambda self, x: self.conv1(x))
    assert structure(Chain(), X) != before


def hooked(net: nn.Module) -> None:
    net.get_submodule("fc1").register_forward_hook(lambda *_: None)


def own_forward(net: nn.Module) -> None:
    net.forward = lambda x: x  # type: ignore[method-assign]


def holds_a_tensor(net: nn.Module) -> None:
    net.table = [torch.ones(2)]  # type: ignore[assignment]


def holds_an_object(net: nn.Module) -> None:
    net.state = object()  # type: ignore[assignment]


def holds_a_closure(net: nn.Module) -> None:
    factor = [1.0]

    def act(x: Tensor) -> Tensor:
        return x * factor[0]

    net.act = act  # type: ignore[assignment]


@pytest.mark.parametrize(
    "change",
    [hooked, own_forward, holds_a_tensor, holds_an_object, holds_a_closure],
    ids=lambda change: change.__name__,
)
def test_what_cannot_be_compared_is_captured_for_itself(change: Callable[[nn.Module], None]) -> None:
    net = Chain()
    change(net)
    with pytest.raises(UnlikeAny):
        structure(net, X)


def test_the_latest_are_remembered_and_open_sizes_apart() -> None:
    asked: list[object] = []
    shared = Shared(lambda net, inputs, dynamic, sizes: asked.append(net), most=2)  # type: ignore[func-returns-value, arg-type, return-value]
    nets = [Chain(width) for width in (1, 2, 3)]
    for net in (nets[0], nets[1], nets[0], nets[2], nets[0], nets[1]):
        shared(net, X, False)
    assert asked == [nets[0], nets[1], nets[2], nets[1]]
    for dynamic, sizes in ((True, ()), (True, ()), (True, (8,)), (True, (8,)), (True, ())):
        shared(nets[1], X, dynamic, sizes)
    assert asked[4:] == [nets[1], nets[1]]
