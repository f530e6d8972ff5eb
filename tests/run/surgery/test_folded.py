"""What may be folded: compared in float64 whatever the network's type, and refused for the true reason."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import Inputs, gates
from paring.gates import StochasticGate
from paring.run.surgery.carry import Cuts
from paring.run.surgery.folded import Judged, cast, dtype_of, outputs
from paring.run.surgery.live_cut import dry_run
from paring.testing import is_stock

pytestmark = [BY_HAND, CUT_SHORT]


class Net(nn.Module):
    """`sly`: how much of the first layer's weights the forward uses without calling it. `twist` goes into the output."""

    def __init__(self, sly: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.sly, self.twist = nn.Linear(6, 12), nn.Linear(12, 4), sly, 0.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.tanh(self.a(x))) + self.twist
        return y + self.sly * self.a.weight.abs().mean() if self.sly else y


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def attached(net: nn.Module, dtype: torch.dtype = torch.float32, at: str | tuple[str, ...] = "units:a") -> pr.Run:
    """A run whose gates have settled on values of their own, a third of them closed."""
    run = pr.attach(net, pr.L0(price=0.0, at=at), X.to(dtype))
    for _, _, gate in gates(net):
        assert isinstance(gate, StochasticGate)
        gate.log_alpha.data.uniform_(-1.0, 2.0)
        gate.log_alpha.data[::3] = -9.0
    return run


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sly", [0.0, 1e-4, 0.3])
def test_a_wrong_fold_is_seen_in_every_type_and_a_right_one_is_not_blamed(dtype: torch.dtype, sly: float) -> None:
    torch.manual_seed(0)
    net = Net().to(dtype)
    run = attached(net, dtype)
    net.sly = sly
    if not sly:
        small = run.finish()
        assert is_stock(small)
        assert small.a.out_features == 8
        return
    with pytest.raises(
        RuntimeError, match=r"uses the weights of a gated layer without calling that layer \('a'\).*units:!a"
    ):
        run.finish()


def test_only_the_layer_to_blame_is_named() -> None:
    net = Net()
    run = attached(net, at=("units:a", "inputs:b"))
    net.sly = 0.5
    with pytest.raises(RuntimeError, match=r"\('a'\)"):
        run.finish()


def test_a_network_that_writes_its_type_into_the_forward_is_compared_in_that() -> None:
    class Own(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    net = Own()
    judged = Judged.of(net, Inputs.of(X))
    assert judged.dtype == torch.float32
    run = attached(net)
    assert run.finish().a.out_features == 8
    net.sly = 0.01
    with pytest.raises(RuntimeError, match="without calling that layer"):
        run.finish()
    old = judged.outputs()
    assert not judged.differs(old, [t + 1e-4 * float(t.abs().max()) for t in old])
    assert judged.differs(old, [t + 1.5e-4 * float(t.abs().max()) for t in old])
    half = Own().to(torch.bfloat16)
    half.forward = types.MethodType(lambda self, x: Net.forward(self, x.bfloat16()), half)
    assert Judged.of(half, Inputs.of(X)).dtype == dtype_of(half) == torch.bfloat16


def test_a_nan_is_no_fault_of_the_forward() -> None:
    net = Net()
    run = attached(net)
    with torch.no_grad():
        net.b.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"weight 'b.weight' of this Net holds NaN in 1 of 48 entries"):
        run.finish()
    with torch.no_grad():
        net.b.weight[1, 2] = 0.0
    net.twist = torch.nan
    with pytest.raises(ValueError, match="own output is NaN on the example in all of its 16 entries"):
        run.finish()


def test_a_forward_that_never_says_the_same_twice_is_called_that() -> None:
    class Counting(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.twist += 1.0
            return super().forward(x)

    net = Counting()
    run = attached(net)
    with pytest.raises(RuntimeError, match="gives other outputs each time"):
        run.finish()


def test_weights_that_leave_the_range_of_their_type() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).to(torch.float16)
    run = pr.attach(net, pr.L0(price=0.0, at="units:0"), torch.ones(4, 6, dtype=torch.float16))
    with torch.no_grad():
        net[0].weight.fill_(1e-5)
        net[0].bias.fill_(1.0)
        net[0].unit_gate.log_alpha.fill_(0.0)
    assert run.finish()[0].weight.dtype == torch.float16
    with torch.no_grad():
        net[0].weight.fill_(6e-8)  # the least that float16 holds: half of it is none
        net[0].bias.zero_()
        net[1].weight.fill_(3e4)
        net[1].bias.zero_()
    with pytest.raises(
        RuntimeError, match=r"right in float64, but not in the type of its weights .* in float16.*\.float\(\)"
    ):
        run.finish()


class ToFloat:
    """What accelerate puts around the forward besides autocast."""

    def __init__(self, call: Any, scale: float = 1.0) -> None:
        self.call, self.scale = call, scale
        functools.update_wrapper(self, call)

    def __call__(self, *args: Any) -> Tensor:
        out: Tensor = self.call(*args)
        return out.float() * self.scale if out.dtype == torch.bfloat16 else out * self.scale


def prepare(net: nn.Module, scale: float = 1.0) -> None:
    """As `accelerator.prepare(net)` does with mixed precision."""
    net._original_forward = net.forward  # type: ignore[assignment]
    cast = torch.autocast("cpu", dtype=torch.bfloat16)(net.forward.__func__)  # type: ignore[attr-defined]
    converts = ToFloat(cast, scale)

    def forward(*args: Any) -> Tensor:
        return converts(*args)

    forward.__wrapped__ = converts  # type: ignore[attr-defined]
    net.forward = types.MethodType(forward, net)  # type: ignore[method-assign]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
def test_mixed_precision_on_the_instance_comes_off(first: bool, inplace: bool) -> None:
    torch.manual_seed(0)
    net = Net()
    if first:
        prepare(net)
    run = attached(net)
    plain = copy.deepcopy(net)
    if first:
        del plain.forward
    else:
        prepare(net)
    assert not torch.equal(net.eval()(X), plain.eval()(X)), "in bfloat16"
    small = run.finish(inplace=inplace)
    assert small.a.out_features == 8
    assert torch.allclose(small(X), plain(X), atol=1e-6)
    assert "forward" not in vars(small)
    assert "forward" in vars(net) or inplace
    assert any("mixed precision" in note for note in run.report.notes)


def test_older_ways_of_wrapping_and_plain_compact() -> None:
    net = Net().eval()
    with torch.no_grad():
        net.a.weight[:5], net.a.bias[:5] = 0, 0
    expected = net(X)
    net.forward = torch.autocast("cpu", dtype=torch.bfloat16)(net.forward)  # type: ignore[method-assign]
    small, _ = pr.compact(net, X)
    assert small.a.out_features == 7
    run = attached(net)
    assert "forward" not in vars(run.finish())
    del net.forward
    assert torch.equal(net(X), net(X))
    del small.forward
    assert torch.allclose(small(X), expected, atol=1e-6)


def test_autocast_around_the_call_changes_nothing() -> None:
    torch.manual_seed(0)
    run = attached(Net())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small = run.finish()
        assert torch.is_autocast_enabled("cpu")
    assert small.a.out_features == 8
    assert not run.report.rolled_back


def test_a_forward_that_does_more_than_mixed_precision_is_not_lost() -> None:
    net = Net()
    run = attached(net)
    prepare(net, scale=2.0)
    with pytest.raises(ValueError, match="does more than mixed precision"):
        run.finish()


def test_a_forward_that_holds_on_to_the_network_is_refused_before_a_copy_runs_the_original() -> None:
    net = Net().eval()
    original = net.forward
    net.forward = lambda x: 2 * original(x)  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"forward of this Net was replaced on the instance by a function that holds on"
    ):
        pr.compact(net, X)
    del net.forward
    run = attached(net)
    inner = net.b.forward
    net.b.forward = lambda x: inner(x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="forward of layer 'b' was replaced"):
        run.finish()


def test_a_part_that_is_compiled_is_named_with_what_to_do() -> None:
    net = Net().eval()
    net.b = torch.compile(net.b, backend="eager")  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"layer 'b' is wrapped in a OptimizedModule .*net\.b = net\.b\._orig_mod"):
        attached(net)
    assert type(pr.compact(net, X)[0].b) is nn.Linear  # removal sees through it


def test_a_layer_whose_forward_goes_past_its_gates_takes_none() -> None:
    net = Net()
    net.a.forward = types.MethodType(nn.Linear.forward, net.a)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"its forward was replaced on the instance"):
        pr.attach(net, pr.L0(at="weights:a"), X)
    pr.attach(net, pr.L0(price=1.0, at="units:a"), X)  # its units are gated where they are read
    assert type(net.a) is nn.Linear
    assert net.b.input_gate is not None


def test_a_dry_run_sees_a_cut_that_is_wrong_by_little_and_names_a_nan() -> None:
    net = Net()
    run = attached(net)
    with torch.no_grad():
        net.a.unit_gate.log_alpha[5] = 0.0
        net.b.weight[:, 5] = 1e-6
    keep = torch.tensor([n for n in range(12) if n != 5])
    cuts = Cuts({"a.weight": {0: keep}, "a.bias": {0: keep}, "b.weight": {1: keep}, "a.unit_gate.log_alpha": {0: keep}})
    assert "outputs differ by" in str(dry_run(net, cuts, run.probe.example))
    with torch.no_grad():
        net.b.weight[:, 5] = 0.0
    assert dry_run(net, cuts, run.probe.example) is None
    with torch.no_grad():
        net.b.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"'b\.bias' of this Net holds NaN"):
        dry_run(net, cuts, run.probe.example)


def test_the_coarsest_type_of_a_network_decides() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2).double())
    assert dtype_of(mixed) == torch.bfloat16
    assert dtype_of(nn.ReLU()) == torch.float32


def test_outputs_are_the_floating_point_tensors_and_examples_change_no_other_type() -> None:
    seen = []

    def forward(x: Tensor, n: Tensor, flag: bool = True) -> dict[str, Any]:
        seen.append((torch.is_grad_enabled(), x.dtype, n.dtype, flag))
        return {"a": [x, n, None, 3], "b": (2.0, (x > 0), x * n)}

    example = Inputs((X, torch.tensor(2)), {"flag": False})
    for grad in (False, True):
        found = outputs(forward, cast(example, torch.float64), grad)
        assert [(t.dtype, t.requires_grad) for t in found] == [(torch.float64, False)] * 2
        assert torch.equal(found[1], 2 * X.double())
    assert seen == [(grad, torch.float64, torch.int64, False) for grad in (False, True)]
