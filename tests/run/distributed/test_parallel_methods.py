"""Two processes train methods of several rounds and of weights like one process does, with the same masks in both.

The file is also the script of each process. Their networks start from different weights where nobody has to seed them
alike: DistributedDataParallel sends those of the first process to all. Under `fully_shard` they start alike.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import paring as pr
from paring.core import gates
from paring.run.distributed.sharded import whole
from tests.run.processes import together

_STEPS = 6


@dataclass(frozen=True)
class Case:
    """One method under DistributedDataParallel or `fully_shard`.

    Args:
        method: a training of six steps.
        halves: compare with the two half batches, one after the other, because they get different noise or statistics.
        norm: with a BatchNorm.
        sharded: under `fully_shard`.
    """

    method: pr.Method
    halves: bool = False
    norm: bool = False
    sharded: bool = False


_REWOUND = pr.L0(price=pr.Budget(params=0.4), hold=pr.Hold(0.5, rewind=1))
_CASES = (
    Case(pr.IMP(prunings=2, rate=0.4)),
    Case(pr.IMP(prunings=1, rate=0.4, rewind=2)),
    Case(pr.IMP(prunings=1, rate=0.4, retrain="lr", rewind=2)),
    Case(pr.GMP(density=0.3, every=2)),
    Case(pr.GMP(density=0.3, every=2, recover=False, allocation=pr.select.Global())),
    Case(pr.RigL(density=0.4, every=2, drop=0.5)),
    Case(pr.SET(density=0.4, every=2, drop=0.5)),
    Case(pr.DNW(density=0.4)),
    Case(pr.STR(s_init=-3.0)),
    Case(pr.EdgePopup(gate_lr=10.0)),
    Case(pr.AtInit(score="snip", density=0.4)),
    Case(pr.Stack(pr.Binarize("staircase"), pr.GMP(density=0.3, every=2, at="weights:0"))),
    Case(pr.Slimming(density=0.5, rate=1e-2)),
    Case(pr.Slimming(density=0.5, rate=1e-2), halves=True, norm=True),
    Case(pr.Stack(pr.Slimming(density=0.5), pr.Shrink(every=1, multiple_of=1, saving=0.0, measure=False))),
    Case(pr.ContinuousSparsification(searches=1, density=0.3, rewind=2, gate_lr=10.0)),
    Case(pr.SparseVD(rate=1e-2, gate_lr=10.0), halves=True),
    Case(pr.Supermask(gate_lr=30.0), halves=True),
    Case(pr.Stack(_REWOUND, pr.Shrink(every=1, multiple_of=1, saving=0.0, measure=False)), halves=True),
    Case(_REWOUND, halves=True, sharded=True),
    Case(pr.L0(price=pr.Budget(params=0.4), start="trained", hold=0.5), halves=True, sharded=True),
    Case(pr.IMP(prunings=1, rate=0.4), sharded=True),
    Case(pr.GMP(density=0.3, every=2), sharded=True),
    Case(pr.DNW(density=0.4), sharded=True),
    Case(pr.EdgePopup(gate_lr=10.0), sharded=True),
    Case(pr.AtInit(score="snip", density=0.4), sharded=True),
    Case(pr.Stack(pr.Binarize(weights="sign"), pr.GMP(density=0.3, every=2, at="weights:0")), sharded=True),
    Case(pr.Slimming(density=0.5, rate=1e-2), sharded=True),
    Case(pr.ContinuousSparsification(searches=1, density=0.3, rewind=2, gate_lr=10.0), sharded=True),
    Case(pr.SparseVD(rate=1e-2, gate_lr=10.0), halves=True, sharded=True),
    Case(pr.Supermask(gate_lr=30.0), halves=True, sharded=True),
)


def _network(norm: bool) -> nn.Module:
    norms = [nn.BatchNorm1d(10)] if norm else []
    layers = (nn.Linear(6, 10), *norms, nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(*layers).double()


def _batch(step: int) -> Tensor:
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def _loss(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (net(x) - x[:, :3].sin()).pow(2).mean()


def _optimizer(run: pr.Run) -> torch.optim.Optimizer:
    return torch.optim.SGD(run.parameter_groups(0.1, weight_decay=1e-2), 0.1, momentum=0.9)


def _backward_of_one(net: nn.Module, run: pr.Run, x: Tensor, step: int, halves: bool) -> None:
    """Gradients of the whole batch, or of the two halves one after the other."""
    first: list[Tensor] = []
    for part in (0, 1) if halves else (0,):
        torch.manual_seed(2 * step + part)
        loss = _loss(net, x[part::2]) / 2 if halves else _loss(net, x)
        (loss if part else loss + run.penalty()).backward()
        first = first or [buffer.clone() for buffer in net.buffers()]
    for buffer, kept in zip(net.buffers(), first, strict=True):
        buffer.copy_(kept)  # the running statistics of the first process count


def _gathered(value: object) -> list[object]:
    found: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _supports(net: nn.Module) -> list[Tensor]:
    with whole(net, weights=False):
        return [gate.support() for _, _, gate in gates(net)]


def _agree(net: nn.Module, reference: nn.Module, where: str) -> None:
    """The same in both processes to the last bit, and that of the reference up to rounding."""
    with whole(net):
        parameters = [p.detach() for p in net.parameters()]
    supports = _supports(net)
    first, second = _gathered((parameters, supports))
    for kind, a, b in zip(("parameters", "supports"), first, second, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)), f"{where}: {kind} of the processes differ"
    for (_, _, gate), support in zip(gates(reference), supports, strict=True):
        assert torch.equal(gate.support(), support), f"{where}: another support than in one process"
    for (name, p), q in zip(reference.named_parameters(), parameters, strict=True):
        assert (p - q).abs().max() < 1e-10, f"{where}: {name} is off by {(p - q).abs().max():.1e}"


def _attached(method: pr.Method, norm: bool = False) -> tuple[nn.Module, pr.Run]:
    """A network and its run; each process scores weights on data of its own."""
    net, own = _network(norm), _batch(100 + dist.get_rank())
    return net, pr.attach(net, method, own[:2], steps=_STEPS, epoch_steps=3, loss=lambda net: _loss(net, own))


def _refused(method: pr.Method) -> None:
    net, run = _attached(method)
    fully_shard(net)
    opt = _optimizer(run)
    _loss(net, _batch(0)).backward()
    with pytest.raises(ValueError, match=r"sharded over processes already. Train it under DistributedDataParallel"):
        run.step(opt)


def _train(case: Case) -> None:
    """One method in this process, with the other one and alone, step by step."""
    rank, method = dist.get_rank(), case.method
    torch.manual_seed(0 if case.sharded else rank)
    net, run = _attached(method, case.norm)
    alone, its = copy.deepcopy((net, run))
    forward: Callable[[Tensor], Tensor] = fully_shard(net) if case.sharded else run.parallel(DistributedDataParallel)
    if not case.sharded:
        alone.load_state_dict(net.state_dict())
    opt, other = _optimizer(run), _optimizer(its)
    supports = _supports(net)
    closed = moved = False
    while True:
        for step in range(run.clock.step, _STEPS):
            x = _batch(step)
            for one in (opt, other):
                one.zero_grad()
            torch.manual_seed(2 * step + rank)
            (_loss(forward, x[rank::2]) + run.penalty()).backward()
            _backward_of_one(alone, its, x, step, case.halves)
            run.step(opt)
            its.step(other)
            _agree(net, alone, f"{method}, round {run.clock.round}, step {step}")
            now = _supports(net)
            closed |= bool(run.shrinks) or any(not bool(support.all()) for support in now)
            moved |= any(not torch.equal(a, b) for a, b in zip(supports, now, strict=True))
        more = run.next_round(opt)
        assert more == its.next_round(other)
        _agree(net, alone, f"{method}, beginning of round {run.clock.round}")
        if not more:
            break
    assert closed, f"{method} closes nothing here"
    assert moved or isinstance(method, pr.AtInit), f"{method} decides nothing here"
    parts = method.methods if isinstance(method, pr.Stack) else ()
    assert bool(run.shrinks) == any(isinstance(part, pr.Shrink) for part in parts)
    with torch.no_grad():
        forward(_batch(0)[:2])  # sends the running statistics
    alone(_batch(0)[:2])
    assert (run.finish()(_batch(0)) - its.finish()(_batch(0))).abs().max() < 1e-10, method


def main(rank: int, meeting: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for case in _CASES:
        _train(case)
    for method in (pr.RigL(every=2), pr.Stack(pr.SET(every=2), pr.L0(at="units"))):
        _refused(method)
    with pytest.raises(ValueError, match="doesn't support scalar parameters"):
        fully_shard(_attached(pr.STR())[0])
    with pytest.raises(ValueError if rank == 0 else RuntimeError, match="tell attach a loss"):
        pr.attach(_network(False), pr.AtInit(score="snip"), _batch(0))
    print("agreed")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    assert all("agreed" in said for said in together(Path(__file__), tmp_path))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
