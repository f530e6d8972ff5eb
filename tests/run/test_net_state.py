"""What training needs to go on travels in the network's own state dict."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import CUT_SHORT
from paring.core import STATE_KEY, attached
from paring.testing import ZOO, Chain, Row, chain_batch, same_state

pytestmark = CUT_SHORT

STEPS = 40
SOME = (
    "l0 rewound and shrinking",
    "l0 retiring",
    "imp",
    "continuous sparsification",
    "rigl",
    "binary network losing units",
)
SHRINKING = next(row for row in ZOO if row.name == "l0 shrinking")
BUDGET = next(row for row in ZOO if row.name == "l0 budget")
IMP = next(row for row in ZOO if row.name == "imp")


def started(row: Row) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = row.net()
    x, y = chain_batch(30)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    run = pr.attach(
        net,
        row.make(),
        x[:2],
        optimizer=opt,
        steps=STEPS,
        epoch_steps=10,
        loss=lambda copy_: F.cross_entropy(copy_(x), y),
    )
    return net, run, opt


def train(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int) -> None:
    """`steps` of all, round after round."""
    for _ in range(steps):
        if run.clock.step == STEPS:
            run.next_round(opt)
        x, y = chain_batch()
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()


def file_of(net: nn.Module, opt: torch.optim.Optimizer) -> bytes:
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "noise": torch.get_rng_state()}, file)
    return file.getvalue()


def resumed(row: Row, saved: bytes) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    state = torch.load(io.BytesIO(saved), weights_only=True)
    net, run, opt = started(row)
    net.load_state_dict(state["net"])
    opt.load_state_dict(state["opt"])
    torch.set_rng_state(state["noise"])
    return net, run, opt


@pytest.mark.parametrize("row", [row for row in ZOO if row.name in SOME], ids=lambda row: row.name)
def test_network_and_optimizer_alone_resume_bit_for_bit(row: Row) -> None:
    length = STEPS + (30 if row.make().rounds > 1 else 0)
    straight, run, opt = started(row)
    train(straight, run, opt, length)
    net, run, opt = started(row)
    done = 0
    for stop in (7, 33, *((length - 20,) if length > STEPS else ())):
        train(net, run, opt, stop - done)
        net, run, opt = resumed(row, file_of(net, opt))
        done = stop
    train(net, run, opt, length - done)
    assert same_state(straight.state_dict(), net.state_dict())
    ends = [run.finish(early=True) for run in (run, attached(straight).memory)]  # type: ignore[union-attr]
    assert same_state(ends[0].state_dict(), ends[1].state_dict())


def test_safetensors_keep_all_of_it(tmp_path: Path) -> None:
    net, run, opt = started(SHRINKING)
    train(net, run, opt, 33)
    assert any(record["done"] for record in run.shrinks)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    again, other, _ = started(SHRINKING)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    assert same_state(again.state_dict(), net.state_dict())
    assert (other.clock, other.shrinks) == (run.clock, run.shrinks)
    assert again.conv1.out_channels == net.conv1.out_channels < 6


def test_a_network_without_a_method_says_what_to_do() -> None:
    net, _, _ = started(BUDGET)
    with pytest.raises(
        RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*call_paring_attach_before_load_state_dict"
    ):
        Chain().load_state_dict(net.state_dict())


def test_a_sequential_keeps_its_children() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    run = pr.attach(net, pr.L0(price=1e-3), torch.randn(2, 4))
    assert len(net) == 3
    assert net(torch.randn(2, 4)).shape == (2, 2)
    assert STATE_KEY in net.state_dict()
    outer = nn.ModuleDict({"a": net, "b": nn.Linear(2, 2)})
    assert f"a.{STATE_KEY}" in outer.state_dict()
    run.clock = pr.core.Clock(3)
    state = outer.state_dict()
    run.clock = pr.core.Clock()
    outer.load_state_dict(state)
    assert run.clock.step == 3
    assert all(STATE_KEY not in name for name in run.finish(early=True).state_dict())
    run.finish(inplace=True, early=True)
    assert all(STATE_KEY not in name for name in net.state_dict())
    assert not net._state_dict_hooks
    assert not net._load_state_dict_pre_hooks


def test_a_refused_attach_leaves_no_hook() -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ValueError, match="no place for gates"):
        pr.attach(net, pr.L0(price=1e-3), torch.randn(2, 4))
    assert not net._state_dict_hooks
    assert not net._load_state_dict_pre_hooks


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_put_their_prefix_in_front(wrap: Any) -> None:
    net, run, opt = started(SHRINKING)
    train(net, run, opt, 33)
    state = wrap(net).state_dict()
    assert [name for name in state if name.endswith("." + STATE_KEY)]
    again, other, _ = started(SHRINKING)
    wrapped = wrap(again)
    wrapped.load_state_dict(state)
    if wrap is AveragedModel:  # a copy: it gets the sizes, the run goes on where it is
        assert other.clock.step == 0
        assert wrapped.module.conv1.out_channels == net.conv1.out_channels
        return
    assert other.clock.step == 33
    assert same_state(again.state_dict(), net.state_dict())


def test_copies_load_and_are_loaded() -> None:
    net, run, opt = started(SHRINKING)
    average = copy.deepcopy(net)
    run.track(average)
    train(net, run, opt, 33)
    state = copy.deepcopy(average.state_dict())
    assert [value.shape for value in state.values()] == [value.shape for value in net.state_dict().values()]
    assert same_state({STATE_KEY: state[STATE_KEY]}, {STATE_KEY: net.state_dict()[STATE_KEY]})
    average.load_state_dict(net.state_dict())
    assert run.clock.step == 33
    train(net, run, opt, 2)
    average.load_state_dict(state)
    assert run.clock.step == 35
    fresh, other, _ = started(SHRINKING)
    follower = copy.deepcopy(fresh)
    other.track(follower)
    follower.load_state_dict(state)  # first the copy
    assert other.clock.step == 0
    assert follower.conv1.out_channels < fresh.conv1.out_channels
    fresh, other, _ = started(SHRINKING)
    follower = copy.deepcopy(fresh)
    other.track(follower)
    fresh.load_state_dict(net.state_dict())  # cuts what is tracked
    follower.load_state_dict(state)
    assert other.clock.step == 35
    assert same_state(
        {k: v for k, v in follower.state_dict().items() if k != STATE_KEY},
        {k: v for k, v in state.items() if k != STATE_KEY},
    )
    net.load_state_dict(average.state_dict())  # an average takes over: training stands where it stood
    assert run.clock.step == 35


def test_averages_over_whole_state_dicts_go_on() -> None:
    """As in timm: every entry of the copy's state dict is moved towards the network's."""
    net, run, opt = started(BUDGET)
    average = copy.deepcopy(net)
    train(net, run, opt, 7)
    for old, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        old.copy_(0.9 * old + 0.1 * new)
    run.finish(average, early=True)


def test_what_is_pickled_with_the_run_goes_on() -> None:
    net, run, opt = started(BUDGET)
    train(net, run, opt, 7)
    for made in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        other, again = made((net, run))
        assert again.net is other
        assert same_state(other.state_dict(), net.state_dict())
        again.clock = pr.core.Clock(9, 0, STEPS)
        assert not same_state(other.state_dict(), net.state_dict())
    alone = pickle.loads(pickle.dumps(net))
    assert STATE_KEY not in alone.state_dict()
    alone.load_state_dict(net.state_dict())


def test_the_rewind_point_is_there_while_it_is_needed() -> None:
    net, run, opt = started(IMP)
    weights = sum(v.numel() * v.element_size() for v in Chain().state_dict().values())
    sizes = [len(net.state_dict()[STATE_KEY])]
    train(net, run, opt, 5)
    for _ in range(run.method.rounds):
        sizes.append(len(net.state_dict()[STATE_KEY]))
        train(net, run, opt, STEPS - run.clock.step)
        sizes.append(len(net.state_dict()[STATE_KEY]))
        run.next_round(opt)
    assert [size > weights for size in sizes] == [False, True, True, True, True, False, False]


def test_what_was_changed_is_refused_and_nothing_else_happens() -> None:
    net, run, opt = started(SHRINKING)
    train(net, run, opt, 33)
    state = net.state_dict()
    again, other, _ = started(SHRINKING)
    before = copy.deepcopy(again.state_dict())
    flipped = state[STATE_KEY].clone()
    flipped[len(flipped) // 2] ^= 1
    for value, text in (
        (flipped, "cannot be read: it is damaged"),
        (state[STATE_KEY][:-1].clone(), "cannot be read"),
        (state[STATE_KEY].float(), "a tensor of torch.float32 and not bytes any more: averaging"),
        (torch.zeros(3, 3, dtype=torch.uint8), "and not bytes any more"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            again.load_state_dict({**state, STATE_KEY: value})
        assert f"take '{STATE_KEY}' out" in str(caught.value)
        assert same_state(again.state_dict(), before)
    with pytest.raises(ValueError, match="this state was saved with"):
        started(BUDGET)[0].load_state_dict(state)
    smaller = {name: value for name, value in state.items() if name != STATE_KEY}
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.load_state_dict(smaller)
    shrunk = copy.deepcopy(before)
    with pytest.raises(ValueError, match="has shrunk further than this state"):
        net.load_state_dict(shrunk)
    assert other.clock.step == 0


def test_the_tensors_alone_can_be_loaded() -> None:
    net, run, opt = started(BUDGET)
    train(net, run, opt, 5)
    again, other, _ = started(BUDGET)
    again.load_state_dict({name: value for name, value in net.state_dict().items() if name != STATE_KEY})
    assert other.clock.step == 0
    dense = {name: value + 1 for name, value in Chain().state_dict().items() if isinstance(value, Tensor)}
    again.load_state_dict(dense, strict=False)


def test_files_of_ours_say_what_it_is(tmp_path: Path) -> None:
    net, _, _ = started(BUDGET)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(
        pr.FileError, match=r"trains with a method, gates included\. To go on training, build the network, call"
    ):
        pr.load(Chain, tmp_path / "net.safetensors")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 3)
        self.block = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y: Tensor = self.last((x + self.block(x)).relu())
        return y


def test_gates_that_several_layers_hold_are_there_once(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory."""

    def begun() -> tuple[nn.Module, pr.Run]:
        torch.manual_seed(0)
        net = Residual()
        return net, pr.attach(net, pr.L0(price=1e-3), torch.randn(2, 6))

    net, run = begun()
    assert len(run.shared_gates) == 1
    (gate,) = run.shared_gates
    with torch.no_grad():
        next(gate.parameters()).add_(torch.randn(9))
    state = net.state_dict()
    assert sum(value is not None and "parts.0.log_alpha" in name for name, value in state.items()) == 1
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    for wrap in (lambda net: net, nn.DataParallel):
        other, _ = begun()
        wrapped = wrap(other)
        wrapped.load_state_dict({f"{'module.' if wrapped is not other else ''}{k}": v for k, v in state.items()})
        assert same_state(other.state_dict(), state)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    assert same_state(other.state_dict(), state)
    del state["first.unit_gate.parts.0.log_alpha"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)
