"""FSDP2 with two processes: training with gates is that of the whole network, finish gives every process the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paring as pr
from marks import BY_HAND
from paring.core import gates
from paring.run.distributed.sharded import is_sharded, whole
from tests.run.processes import together

_CHILD = """
import copy
import sys
import warnings
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
import paring as pr
from paring.core import STATE_KEY, gates
from paring.gates import expected as likely, support
from paring.run.distributed.sharded import whole

warnings.filterwarnings("error", category=UserWarning, module="paring")
warnings.filterwarnings("ignore", "training ended at step 5 of 6")
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 9)
        self.block = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 9))
        self.last = nn.Linear(9, 3)
        self.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((x + self.block(x)).relu())


def attached(method):
    torch.manual_seed(0)
    net = Net().double()
    return net, pr.attach(net, method, torch.randn(2, 6, generator=torch.Generator().manual_seed(rank)).double(), steps=6)


def loss(net, step, part):
    torch.manual_seed(step)  # the gates' noise: the same in both processes
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + part))
    return net(x).pow(2).mean()


def optimizer(kind, groups):
    return torch.optim.Adam(groups, 0.1) if kind == "adam" else torch.optim.SGD(groups, 0.1, momentum=0.9)


def sharded_steps(net, run, opt, steps, follow):
    for step in steps:
        opt.zero_grad()
        (loss(net, step, rank) + (0 if follow else run.penalty())).backward()
        opt.step() if follow else run.step(opt)


def whole_steps(net, run, opt, steps):
    for step in steps:
        opt.zero_grad()
        (loss(net, step, 0) / 2).backward()
        buffers = [b.clone() for b in net.buffers()]
        for gate in run.shared_gates:
            gate.renew()  # the other process draws the same noise, but draws it
        (loss(net, step, 1) / 2 + run.penalty()).backward()
        for now, first in zip(net.buffers(), buffers, strict=True):
            now.copy_(first)  # the statistics of the first process count
        run.step(opt)


def same_parameters(net, other):
    with whole(net):
        for (name, a), (also, b) in zip(net.named_parameters(), other.named_parameters(), strict=True):
            assert name == also and not isinstance(a, DTensor)
            assert (a - b).abs().max() < 1e-10, (name, (a - b).abs().max())


methods = (
    pr.L0(at="units", price=0.02, gate_lr=30.0, l2=0.01, gate=pr.gates.relax.HardConcrete(clamp=(-2.0, 2.0)), hold=0.4),
    pr.L0(at=("units", "inputs"), price=pr.Budget(0.6), hold=0.4),
)
cases = ((methods[0], "sgd", False), (methods[1], "adam", True), (methods[0], "adam", True))
for number, (method, kind, follow) in enumerate(cases):
    net, run = attached(method)
    other, reference = attached(method)
    assert len(run.shared_gates) == 1  # that of the residual stream
    for part in (*run.shared_gates, net.first, net.block) if number == 0 else ():
        fully_shard(part)
    if number == 1:
        fully_shard(net.last)
    fully_shard(net)
    assert any(isinstance(p, DTensor) for _, _, gate in gates(net) for p in gate.parameters())
    opt = optimizer(kind, net.parameters() if follow else run.parameter_groups(0.1))
    opt2 = optimizer(kind, reference.parameter_groups(0.1))
    if follow:
        run.follow(opt)
    sharded_steps(net, run, opt, range(5), follow)
    assert run.clock.step == 5
    whole_steps(other, reference, opt2, range(5))
    same_parameters(net, other)
    for ask in (likely, support):
        a, b = run.cost(ask), reference.cost(ask)
        assert abs(float(a.macs) - float(b.macs)) < 1e-9

    if method.price == 0.02:  # some closed, so that there is something to remove
        for one in (net, other):
            with whole(one, write=True), torch.no_grad():
                for name, _, gate in gates(one):
                    gate.log_alpha[1:4] = -5.0
    if number == 1:  # through the state dicts of torch.distributed.checkpoint, in shards and whole
        state, memory = get_state_dict(net, opt)
        late, its = attached(method)
        fully_shard(late.last)
        fully_shard(late)
        late_opt = optimizer(kind, late.parameters())
        its.follow(late_opt)
        set_state_dict(late, late_opt, model_state_dict=state, optim_state_dict=memory)
        assert its.clock == run.clock
        sharded_steps(late, its, late_opt, [5], follow)
        copy_, twin, opt_ = copy.deepcopy((other, reference, opt2))
        whole_steps(copy_, twin, opt_, [5])
        same_parameters(late, copy_)
        state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if rank == 0:
            plain, its = attached(method)
            plain.load_state_dict(state)
            assert its.clock == run.clock
            same_parameters(plain, other)

    probe = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.eval()(probe)  # leaves the root gathered
    small, expected = run.finish(), reference.finish()
    assert type(small) is Net and not any(isinstance(m, FSDPModule) for m in small.modules())
    assert not any(isinstance(p, DTensor) for p in small.parameters())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in other.parameters())
    assert [p.shape for p in small.parameters()] == [p.shape for p in expected.parameters()]
    assert (small(probe) - expected(probe)).abs().max() < 1e-10
    assert str(run.report) == str(reference.report)
    found = [None, None]
    dist.all_gather_object(found, small.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    copy.deepcopy(small).train()(probe).sum().backward()

    net.train()
    if method.price == 0.02:
        sharded_steps(net, run, opt, [5], follow)  # the network itself is still sharded, and trains on
        whole_steps(other, reference, opt2, [5])
        same_parameters(net, other)
    with pytest.raises(ValueError, match="leave inplace out"):
        run.finish(inplace=True)
    with pytest.raises(ValueError, match="First paring.attach, then fully_shard"):
        run.conditional()

plain = fully_shard(Net().double())
with pytest.raises(ValueError, match="First paring.attach, then fully_shard"):
    pr.attach(plain, pr.L0(at="units"), torch.randn(2, 6).double())

net, run = attached(pr.Stack(pr.L0(at="units", price=0.02), pr.Shrink(every=1)))
fully_shard(net)
with pytest.raises(RuntimeError, match="sharded over processes .*finish.. gathers the network after training"):
    sharded_steps(net, run, optimizer("sgd", run.parameter_groups(0.1)), [0], False)
dist.barrier()
print("agreed")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_and_finish_like_one(tmp_path: Path) -> None:
    assert all("agreed" in said for said in together(_CHILD, tmp_path))


@BY_HAND
def test_other_networks_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    pr.attach(net, pr.L0(at="units"), torch.randn(2, 6))
    held = list(net.parameters())
    with whole(net, write=True), torch.no_grad():
        for _, _, gate in gates(net):
            gate.log_alpha.fill_(1.0)
    assert not is_sharded(net)
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))
    assert all(bool((gate.log_alpha == 1).all()) for _, _, gate in gates(net))
