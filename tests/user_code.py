"""What the docs show, in a file of a user who runs `mypy --strict` (`make check` does, in its one run); nobody runs it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paring as pr
from paring import select
from paring.data import load


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def twenty_lines() -> nn.Module:
    data = load("digits")
    net = network()
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.2), at="units"), example=data.train.x[:2], steps=600)
    opt = torch.optim.Adam(run.parameter_groups(lr=2e-3))
    for _ in range(600):
        batch = torch.randint(len(data.train), (100,))
        opt.zero_grad()
        (F.cross_entropy(net(data.train.x[batch]), data.train.y[batch]) + run.penalty()).backward()
        run.step(opt)
    small = run.finish()
    pr.save(small, "small.safetensors")
    again: nn.Module = pr.load(network, "small.safetensors")
    print(run.report)
    print(pr.report(again, data.test.x[:2]))
    return small


def settings() -> list[pr.Method]:
    return [
        pr.L0(price=0.1 / 60_000, keep={"fc1": 0.8, "fc2": 0.5}, hold=pr.Hold(0.5, drop={"fc*": 0.2})),
        pr.L0(price=pr.Price(1e-6, layers={"conv1": 1e-5}), at=["units:Conv2d", "inputs:Linear"]),
        pr.L0(price=pr.Price(1e-6, layers=(("conv1", 1e-5),)), keep=(("fc1", 0.8),), at=("units", "inputs")),
        pr.L0(gate=pr.gates.relax.HardConcrete(), keep=0.8, hold=pr.Hold(0.3, drop=0.1)),
        pr.IMP(prunings=1, rate=0.5, structure=select.NM(2, 4), at="weights:!fc2", rewind="2ep"),
        pr.GMP(density=0.1, ramp=(0.0, 0.5), every="1ep", allocation=select.Global(least=1)),
        pr.RigL(density=0.1, allocation=select.Uniform(first_dense=True)),
        pr.ContinuousSparsification(density=0.1, ticket="prune", flat=False),
        pr.AtInit(score="synflow", density=0.05),
        pr.Slimming(density=0.3, at=["units:Conv2d"]),
        pr.STR(s_init=-10),
        pr.Masked(structure=select.NM(2, 4)),
        pr.Binarize("staircase", rule=None or pr.Binarize().rule),
        pr.Stack(pr.L0(price=pr.Budget(macs=0.25), at="units", hold=0.9), pr.Shrink(every="1ep", multiple_of=8)),
    ]


def compacted(net: nn.Module, x: Tensor, path: Path) -> nn.Module:
    small, report = pr.compact(net, x, drop_inputs=True, input_groups={"fc1": 4})
    print(report, report.parameters[1])
    pr.save(small, path)
    pr.pack(small, path.with_suffix(".pare"))
    tensors = pr.unpack(None, path.with_suffix(".pare"))
    print(sum(tensor.numel() for tensor in tensors.values()))
    again: nn.Module = pr.unpack(net, path.with_suffix(".pare"))
    print(pr.groups(net, x))
    fast, gained = pr.deploy(small, x[:1])
    print(fast(x[:1]), gained, gained.layers[0].saved_us)
    return pr.load(again, path)


def told(progress: pr.core.Progress) -> None:
    print(progress.done, progress.total, progress.what)


def compressed(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    kind = pr.compression.GridRounding()
    found = pr.compress(net, [(x, y)], max_loss_increase=0.01, compressor=kind, fuse_norms=True, example=x, watch=told)
    found = pr.compress(net, [x], pr.own_outputs(net), max_loss_increase=0.01)
    pr.pack(found.net, "net.pare", watch=told)
    return found.net


def hard_thresholds(net: nn.Module, x: Tensor) -> nn.Module:
    run = pr.binarize(net, x, "sign", rule=pr.hard.SoftHinge())
    print(pr.ftprop([[0.0, 1.0], [1.0, 0.0]], [1, -1], hidden=(2,)))
    return pr.pack_bits(run.finish(fuse_norms=False), x)


def fitted() -> nn.Module:
    data = load("digits")
    done = pr.fit(network(), pr.GMP(density=0.1), data, pr.Recipe(epochs=3, lr=1e-3, ema=0.99))
    run: pr.Run = done.run
    try:
        return run.finish(inplace=True)
    except pr.CaptureError as error:
        raise SystemExit(str(error)) from error
