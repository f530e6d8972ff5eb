"""The conformance suite: what every method must do, on every row of the zoo."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import CUT_SHORT
from paring.core import gates, named_weight
from paring.gates import MaskGate
from paring.testing import ZOO, Chain, Row, chain_batch, difference, is_stock, same_state

pytestmark = CUT_SHORT

STEPS = 40
every = pytest.mark.parametrize("row", ZOO, ids=lambda row: row.name)


def attached(row: Row, dtype: torch.dtype = torch.float32) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = row.net().to(dtype)
    x, y = chain_batch(30, dtype=dtype)
    run = pr.attach(
        net, row.make(), x[:2], steps=STEPS, epoch_steps=10, loss=lambda copy_: F.cross_entropy(copy_(x), y)
    )
    return net, run, torch.optim.Adam(run.parameter_groups(lr=5e-3))


def train(
    net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int, forward: Callable[..., Any] | None = None
) -> None:
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x, y = chain_batch(dtype=dtype)
        opt.zero_grad()
        loss = F.cross_entropy((net if forward is None else forward)(x), y)
        (loss + run.penalty()).backward()
        run.step(opt)


@every
def test_is_a_frozen_value(row: Row) -> None:
    method = row.make()
    assert method == row.make()
    assert hash(method) == hash(row.make())
    assert pickle.loads(pickle.dumps(method)) == method
    fields = dataclasses.fields(method)
    if fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, fields[0].name, None)


@every
def test_trains_and_finishes_to_the_same_function(row: Row) -> None:
    net, run, opt = attached(row, torch.float64)
    x, y = chain_batch(200, dtype=torch.float64)
    first = F.cross_entropy(net.eval()(x), y).item()
    train(net.train(), run, opt, STEPS)
    assert F.cross_entropy(net.eval()(x), y).item() < first
    small = run.finish(early=run.method.rounds > 1)
    assert is_stock(small)
    assert not small.training
    gated = copy.deepcopy(net)
    run.method.finish(gated)  # last decisions (a budget's projection), so that both show the same support
    assert difference(small, gated, x) < 1e-10
    dense = dict(row.net().named_parameters())  # what a method adds for good (a learned step) is not counted
    assert sum(p.numel() for n, p in small.named_parameters() if n in dense) <= sum(p.numel() for p in dense.values())
    assert next(n for n, _ in net.named_modules()) == ""
    assert any(True for _ in gates(net)) == row.gated  # the network itself keeps its gates


@every
def test_weights_keep_their_names(row: Row) -> None:
    net, _, _ = attached(row)
    assert set(row.net().state_dict()) <= set(net.state_dict())
    assert isinstance(net.conv1, nn.Conv2d)


@every
def test_finish_in_place(row: Row) -> None:
    net, run, opt = attached(row)
    train(net, run, opt, 5)
    small = run.finish(inplace=True, early=True)
    assert small is net
    assert is_stock(net)
    with pytest.raises(ValueError, match="no method is attached"):
        run.finish()


@every
def test_deepcopy_and_pickle(row: Row) -> None:
    net, run, opt = attached(row)
    train(net, run, opt, 3)
    x, _ = chain_batch()
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert difference(net, copy_, x) == 0
        copy_.conv1.weight.data.zero_()
        assert float(net.conv1.weight.detach().abs().sum()) > 0
        small = run.finish(copy_, early=True)
        assert is_stock(small)


@every
def test_averaged_model(row: Row) -> None:
    net, run, opt = attached(row)
    average = AveragedModel(net)
    for _ in range(3):
        train(net, run, opt, 2)
        average.update_parameters(net)
    small = run.finish(average.module, early=True)
    again = copy.deepcopy(average.module)
    run.method.finish(again)
    assert difference(small, again, chain_batch()[0]) < 1e-5


@every
def test_autocast(row: Row) -> None:
    net, run, opt = attached(row)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(chain_batch()[0])
    assert out.dtype == torch.bfloat16
    (out.float().sum() + run.penalty()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for group in opt.param_groups for p in group["params"])


@every
@pytest.mark.slow
@torch._dynamo.config.patch(cache_size_limit=1000)
def test_compile(row: Row) -> None:
    """What was compiled for another row is used again where its guards let it, and gives what this row's network gives."""
    net, run, opt = attached(row)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    train(net, run, opt, 3, compiled)
    net.eval()
    x, _ = chain_batch()
    with torch.no_grad():
        assert torch.allclose(compiled(x), net(x), atol=1e-5)


@every
def test_accumulation_and_clipping(row: Row) -> None:
    net, run, opt = attached(row)
    for _ in range(3):
        opt.zero_grad()
        for _ in range(2):
            x, y = chain_batch()
            ((F.cross_entropy(net(x), y) + run.penalty()) / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        run.before_step(opt)
        opt.step()
        run.after_step(opt)
    assert run.clock.step == 3
    assert all(p.isfinite().all() for p in net.parameters())


@every
def test_gates_have_their_own_group_without_decay(row: Row) -> None:
    net, run, _ = attached(row)
    groups = run.parameter_groups(lr=0.1, weight_decay=0.5)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(net.parameters())) == len({id(p) for group in groups for p in group["params"]})
    gate_ids = {id(p) for _, _, gate in gates(net) for p in gate.parameters()}
    decayed = {id(p) for _, _, gate in gates(net) if gate.decay for p in gate.parameters()}
    for group in groups:
        own = all(id(p) in gate_ids for p in group["params"])
        assert group["weight_decay"] == (0.0 if own and not all(id(p) in decayed for p in group["params"]) else 0.5)
        assert group["name"].startswith("gates" if own else "weights")
    chosen = run.parameter_groups(lr=0.1, gate_lr=7.0)
    assert all(group["lr"] == (7.0 if group["name"].startswith("gates") else 0.1) for group in chosen)


@every
def test_resumes_bit_for_bit(row: Row) -> None:
    net, run, opt = attached(row)
    saved = {}
    for stop, steps in ((7, 7), (33, 26)):
        train(net, run, opt, steps)
        saved[stop] = copy.deepcopy((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
    train(net, run, opt, STEPS - 33)
    straight, clock = net.state_dict(), run.state_dict()
    for stop, (network, optimizer, random) in saved.items():
        net, run, opt = attached(row)
        net.load_state_dict(network)  # a network that had shrunk is cut to its sizes first
        opt.load_state_dict(optimizer)
        torch.set_rng_state(random)
        train(net, run, opt, STEPS - stop)
        assert same_state(straight, net.state_dict())
        assert same_state(clock, run.state_dict())


@every
def test_what_is_closed_stays_exactly_zero_under_momentum_and_decay(row: Row) -> None:
    net, run, _ = attached(row)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.02, weight_decay=0.1), lr=0.02, momentum=0.9, nesterov=True)
    for _ in range(12):
        train(net, run, opt, 1)
        for name, kind, gate in gates(net):
            if kind == "weights":
                weight = named_weight(net, name)
                seen = gate.fold(weight)
                assert torch.equal(seen != 0, gate.support() & (weight != 0)), name
                if isinstance(gate, MaskGate) and not gate.dense:
                    assert bool((weight[~gate.mask] == 0).all()), name


@every
def test_attached_twice_is_refused(row: Row) -> None:
    net, _, _ = attached(row)
    with pytest.raises(ValueError, match="already has a method attached"):
        pr.attach(net, row.make(), chain_batch()[0])


@every
def test_missing_optimizer_group_is_refused(row: Row) -> None:
    net, run, _ = attached(row)
    opt = torch.optim.SGD([p for name, p in net.named_parameters() if "gate" not in name], lr=0.1)
    if any(True for _, _, gate in gates(net) for _ in gate.parameters()):
        with pytest.raises(ValueError, match="does not hold the parameters of"):
            run.step(opt)
    else:
        run.step(opt)


@every
def test_no_place_for_gates_is_refused_and_leaves_the_network_alone(row: Row) -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    if not row.gated:
        pr.attach(net, row.make(), torch.randn(2, 4))
        return
    with pytest.raises(ValueError, match="no place for gates"):
        pr.attach(net, row.make(), torch.randn(2, 4))
    assert net(torch.ones(1, 2)).shape == (1, 2)
    assert [type(m) for m in net] == [nn.Flatten, nn.ReLU]


@every
def test_state_of_another_method_is_refused(row: Row) -> None:
    _, run, _ = attached(row)
    state = run.state_dict() | {"method": "Other()"}
    with pytest.raises(ValueError, match="was saved with"):
        run.load_state_dict(state)
