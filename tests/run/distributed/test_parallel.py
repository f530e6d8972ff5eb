"""Several processes: a wrapper that is not made anew is refused, one that is goes on averaging, ranks cut alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.processes import together

_CHILD = """
import copy
import gc
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import paring as pr
from paring.core import gates

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)


def attached(every, fold=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    method = pr.Stack(pr.L0(at="units"), pr.Shrink(every=every, multiple_of=1, saving=0.0, measure=rank == 0, fold=fold))
    run = pr.attach(net, method, torch.randn(2, 6).double())
    gate = next(gate for _, _, gate in gates(net))
    gate.log_alpha.data[5:] = -5.0
    gate.freeze()
    return net, run, torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1, momentum=0.9)


def trained(net, run, opt, forward, steps, follow=False):
    for step in range(steps):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))
        opt.zero_grad()
        forward(x).pow(2).sum().backward()
        opt.step() if follow else run.step(opt)


import paring.run.decide
paring.run.decide.step_times = lambda *_: (2.0, 1.0)  # it pays, on rank 0; the others must not measure

net, run, opt = attached(3)
ddp = DistributedDataParallel(net)
try:
    trained(net, run, opt, ddp, 1)
except RuntimeError as error:
    assert "silently stop averaging" in str(error) and "run.parallel" in str(error), error
else:
    raise SystemExit("a wrapper that is not made anew was not refused")
del ddp

results = []
for every, follow in ((3, False), (1000, False), (3, True)):
    net, run, opt = attached(every)
    ddp = run.parallel(DistributedDataParallel)
    first = ddp.wrapped
    if follow:
        run.follow(opt)
    trained(net, run, opt, ddp, 8, follow)
    assert (ddp.wrapped is first) == (every == 1000)
    assert net[0].out_features == (5 if every == 3 else 16)
    with ddp.no_sync():
        pass
    gathered = [None, None]
    dist.all_gather_object(gathered, [p.detach() for p in net.parameters()])
    for a, b in zip(*gathered, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()
    results.append(ddp(torch.ones(1, 6, dtype=torch.float64)).detach())
assert (results[0] - results[1]).abs().max() < 1e-10
assert torch.equal(results[0], results[2])

net, run, opt = attached(3, fold=True)
ddp = run.parallel(DistributedDataParallel)
trained(net, run, opt, ddp, 8)
assert all(gate.transparent for _, _, gate in gates(net))
gathered = [None, None]
dist.all_gather_object(gathered, [p.detach() for p in net.parameters()])
for a, b in zip(*gathered, strict=True):
    assert torch.equal(a, b), (a - b).abs().max()
again, other, its = attached(3, fold=True)
late = other.parallel(DistributedDataParallel)
other.load_state_dict(run.state_dict())
again.load_state_dict(net.state_dict())
its.load_state_dict(copy.deepcopy(opt.state_dict()))
for trainee in ((net, run, opt, ddp), (again, other, its, late)):
    trained(*trainee, 2)  # gates that were folded get no gradient, and nobody waits for it
assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
print("agreed")
# what wraps a network holds the group, whose threads then outlive it and abort the exit
del ddp, first, late, run, other, trainee
gc.collect()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_cut_alike_and_go_on_averaging(tmp_path: Path) -> None:
    assert all("agreed" in said for said in together(_CHILD, tmp_path))


_SHARDED = """
import gc
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor, Replicate
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
import paring as pr

dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
run = pr.attach(net, pr.Stack(pr.L0(at="units"), pr.Shrink(every=1)), torch.randn(2, 6))
opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
mesh = init_device_mesh("cpu", (1,))
net[0].weight = nn.Parameter(distribute_tensor(net[0].weight.detach(), mesh, [Replicate()]))
try:
    run.after_step(opt)
except RuntimeError as error:
    assert "sharded over processes" in str(error) and "finish()" in str(error), error
    print("refused")
plain = fully_shard(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
flat = FullyShardedDataParallel(nn.Linear(6, 3), device_id=torch.device("cpu"))
x = torch.randn(2, 6)
for given in (net, plain, flat, nn.Sequential(flat), AveragedModel(net)):
    for call in (lambda: pr.save(given, "never"), lambda: pr.pack(given, "never"), lambda: pr.compact(given, x)):
        try:
            call()
        except ValueError as error:
            assert "sharded over processes. Hand over the network that run.finish() gathers" in str(error), error
        else:
            raise SystemExit("a sharded network was not refused")
for given in (plain, flat):
    try:
        pr.attach(given, pr.L0(at="units"), x)
    except ValueError as error:
        assert "First paring.attach, then fully_shard" in str(error), error
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
run = pr.attach(net, pr.L0(at="units"), x)
try:
    run.finish(FullyShardedDataParallel(net, device_id=torch.device("cpu")))
except ValueError as error:
    assert "pieces of a flat one" in str(error) and "fully_shard" in str(error), error
else:
    raise SystemExit("flat shards were not refused")

net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
ddp, keys = DistributedDataParallel(net), list(net.state_dict())
try:
    pr.attach(ddp, pr.L0(at="units"), x)
except ValueError as error:
    assert "gradients of the gates" in str(error) and "run.parallel" in str(error), error
else:
    raise SystemExit("gates inside a wrapper that does not know them were not refused")
assert list(net.state_dict()) == keys and type(net[0]) is nn.Linear
run = pr.attach(torch.compile(ddp, backend="eager"), pr.GMP(density=0.5), x, steps=2)  # masks are no parameters
assert run.net is net
small = run.finish(ddp, early=True)
assert type(small) is nn.Sequential
assert type(pr.compact(DistributedDataParallel(small), x)[0]) is nn.Sequential
print("unwrapped")
del ddp, run
gc.collect()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    (said,) = together(_SHARDED, tmp_path, processes=1)
    assert "refused" in said
    assert "unwrapped" in said
