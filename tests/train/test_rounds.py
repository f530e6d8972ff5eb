"""Methods of several rounds: where weights and schedules go back to, and resuming in any step of any round."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring.core import gates
from paring.core.state_file import read
from paring.data import load
from paring.gates import MaskGate
from paring.models import build
from paring.testing import Chain, chain_batch, same_state
from paring.train import Recipe, fit

pytestmark = CUT_SHORT

DATA = load("digits", validation=100)
RECIPE = Recipe(
    epochs=2, batch=300, lr=0.1, optimizer="sgd", weight_decay=1e-3, schedule="step", milestones=(1,), seed=2, ema=0.5
)
STEPS = math.ceil(len(DATA.train) / RECIPE.batch)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("lenet_300_100", shape=DATA.shape, classes=DATA.classes)


def masks(net: nn.Module) -> dict[str, Tensor]:
    return {name: gate.mask for name, _, gate in gates(net) if isinstance(gate, MaskGate)}


def imp(retrain: Literal["weights", "lr", "finetune", "none"] = "weights", rewind: str | int = "0.5ep") -> pr.IMP:
    return pr.IMP(prunings=2, rate=0.5, retrain=retrain, rewind=rewind)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("retrain", "stops"), [("weights", (3, 11, 25)), ("lr", (19,)), ("finetune", (12,)), ("none", (26,))]
)
def test_resumes_bit_for_bit_from_any_step_of_any_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrain: Any, stops: tuple[int, ...]
) -> None:
    whole = fit(network(), imp(retrain), DATA, RECIPE, folder=tmp_path / "whole", progress=False)
    step = pr.Run.after_step
    for stop in stops:
        folder = tmp_path / f"stopped-{stop}"
        left = iter(range(stop - 1, -1, -1))

        def killing(self: pr.Run, opt: torch.optim.Optimizer, left: Iterator[int] = left) -> None:
            step(self, opt)
            if next(left) == 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(pr.Run, "after_step", killing)
            with pytest.raises(Killed):
                fit(network(), imp(retrain), DATA, RECIPE, folder=folder, progress=False)
        again = fit(network(), imp(retrain), DATA, RECIPE, folder=folder, progress=False)
        assert same_state(again.net.state_dict(), whole.net.state_dict())
        seconds = {"seconds", "cpu_seconds"}
        assert [{k: v for k, v in row.items() if k not in seconds} for row in again.rows] == [
            {k: v for k, v in row.items() if k not in seconds} for row in whole.rows
        ]
        for number in (0, 1):
            kept = [read(f / f"round-{number}.pt")["net"] for f in (folder, tmp_path / "whole")]
            assert same_state(*kept)


@pytest.mark.parametrize(("retrain", "epochs"), [("weights", 6), ("lr", 6), ("finetune", 6), ("none", 6)])
def test_learning_rates_of_the_rounds(retrain: Any, epochs: int) -> None:
    """Schedule: 0.1 in the first epoch, 0.01 in the second; the rewind point lies in the middle of the first."""
    rows = fit(network(), imp(retrain), DATA, RECIPE, progress=False).rows
    assert [row["round"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert len(rows) == epochs
    later = [0.01, 0.01] if retrain == "finetune" else [0.1, 0.01]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.01, *later, *later])
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS] * 3


def test_every_cut_is_recorded_once() -> None:
    units = pr.L0(price=pr.Budget(params=0.5), at="units", hold=0.5)
    method = pr.Stack(imp("none"), units, pr.Shrink(every=1, multiple_of=1, saving=0.0, measure=False))
    done = fit(network(), method, DATA, replace(RECIPE, epochs=1), progress=False)
    assert done.run.shrinks[0]["done"]
    assert [one for row in done.rows for one in row.get("shrinks", [])] == done.run.shrinks


def by_hand(net: nn.Module, method: pr.IMP, steps: int, seen: list[Any] | None = None) -> pr.Run:
    """Train `net` with a loop of one's own, noting weights at the beginning of every round."""
    x, _ = chain_batch(2, dtype=torch.float64)
    run = pr.attach(net, method, x, steps=steps)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.05, weight_decay=1e-2), lr=0.05, momentum=0.9)
    while True:
        if seen is not None:
            seen.append(
                (
                    {n: p.detach().clone() for n, p in net.named_parameters()},
                    {n: m.clone() for n, m in masks(net).items()},
                    len(opt.state),
                )
            )
        while run.clock.step < steps:
            x, y = chain_batch(dtype=torch.float64)
            opt.zero_grad()
            (F.cross_entropy(net(x), y) + run.penalty()).backward()
            run.step(opt)
            for name, mask in masks(net).items():
                weight = net.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                assert bool((weight[~mask] == 0).all()), "momentum or decay moved a closed weight"
        if not run.next_round(opt):
            return run


def test_weights_loaded_after_attach_are_the_initialisation() -> None:
    x, _ = chain_batch(2, dtype=torch.float64)
    net = Chain().double()
    run = pr.attach(net, imp("weights", rewind=0), x, steps=4)
    loaded = {name: value + 1 for name, value in net.state_dict().items() if name.endswith(("weight", "bias"))}
    net.load_state_dict(loaded, strict=False)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    for _ in range(4):
        opt.zero_grad()
        net(x).pow(2).sum().backward()
        run.step(opt)
    point = run.point
    assert point is not None
    assert point["norm1.num_batches_tracked"] == 0
    assert all(torch.equal(point[name], value) for name, value in loaded.items())
    assert run.next_round(opt)
    for name, mask in masks(net).items():
        assert torch.equal(net.get_submodule(name).weight, loaded[f"{name}.weight"] * mask)


def test_weights_go_back_to_the_point_and_masks_shrink() -> None:
    torch.manual_seed(0)
    net = Chain().double()
    seen: list[Any] = []
    run = by_hand(net, imp("weights", rewind=5), 20, seen)
    point = run.point
    assert point is not None
    assert point["norm1.num_batches_tracked"] == 5
    total = sum(mask.numel() for mask in masks(net).values())
    before = None
    for number, (weights, found, states) in enumerate(seen[1:], 1):
        assert states == 0
        assert sum(int(mask.sum()) for mask in found.values()) == round(0.5**number * total)
        for name, value in weights.items():
            layer = name.removesuffix(".weight")
            expected = point[name] * found[layer] if layer in found else point[name]
            assert torch.equal(value, expected), name
        if before is not None:
            assert all(bool((~found[name] | before[name]).all()) for name in found), "a closed weight came back"
        before = found


def test_magnitudes_at_the_end_of_the_round_decide() -> None:
    torch.manual_seed(0)
    net = Chain().double()
    method = pr.IMP(prunings=1, rate=0.3, rewind=0)
    x, _ = chain_batch(2, dtype=torch.float64)
    run = pr.attach(net, method, x, steps=4)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    for _ in range(4):
        x, y = chain_batch(dtype=torch.float64)
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        run.step(opt)
    names = list(masks(net))
    trained = torch.cat([net.get_submodule(n).weight.detach().abs().flatten() for n in names])
    assert run.next_round(opt)
    closed = torch.cat([~masks(net)[n].flatten() for n in names])
    assert int(closed.sum()) == len(closed) - round(0.7 * len(closed))
    assert trained[closed].max() <= trained[~closed].min()
    assert not run.next_round(opt)


def test_fit_equals_a_loop_of_ones_own() -> None:
    recipe = replace(RECIPE, ema=0.0, weight_decay=0.0)
    done = fit(network(), imp(), DATA, recipe, progress=False)
    net = network().to(memory_format=torch.preserve_format)
    run = pr.attach(net, imp(), DATA.train.x[:2], steps=2 * STEPS, epoch_steps=STEPS)
    opt = recipe.make_optimizer(run.parameter_groups(recipe.lr))
    while True:
        while run.clock.step < 2 * STEPS:
            epoch = run.clock.step // STEPS
            order = torch.randperm(len(DATA.train), generator=torch.Generator().manual_seed(2 * 1_000_003 + epoch))
            for batch in order.split(recipe.batch)[run.clock.step % STEPS :]:
                for group in opt.param_groups:
                    group["lr"] = 0.1 * recipe.factor(run.schedule_step, STEPS)
                opt.zero_grad()
                F.cross_entropy(net(DATA.train.x[batch]), DATA.train.y[batch]).backward()
                run.step(opt)
        if not run.next_round(opt):
            break
    for name, mask in masks(net).items():
        assert torch.equal(mask, masks(done.net)[name])
    for name, value in net.named_parameters():
        assert torch.allclose(value, done.net.get_parameter(name), atol=1e-6), name


def test_a_point_beyond_the_first_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is step 20, but a round has only 20"):
        pr.attach(Chain(), imp(rewind=20), chain_batch(2)[0], steps=20)
    run = pr.attach(Chain(), imp(rewind=20), chain_batch(2)[0])
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    with pytest.raises(ValueError, match="should go back to step 20, but the first round ended at step 0"):
        run.next_round(opt)


def test_two_methods_of_several_rounds_do_not_stack() -> None:
    with pytest.raises(ValueError, match="at most one method of several rounds"):
        pr.Stack(imp(), pr.IMP(prunings=1))
    assert pr.Stack(pr.Dense(), imp()).rounds == 3


def test_what_was_pruned_away_is_removed() -> None:
    """Units whose weights are all closed leave the network at the end."""
    method = pr.IMP(prunings=2, rate=0.7, structure=pr.select.Units())
    torch.manual_seed(0)
    net = Chain().double()
    run = by_hand(net, method, 10)
    small = run.finish()
    x, _ = chain_batch(20, dtype=torch.float64)
    assert torch.allclose(small(x), net.eval()(x), atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in Chain().parameters())


def test_a_ticket_trained_in_isolation_is_the_round_that_found_it(tmp_path: Path) -> None:
    """The weights of the rewind point under the mask, trained alone from that step on: the same bits as in IMP's round."""
    method = pr.IMP(prunings=1, rate=0.5, rewind=3)
    found = fit(network(), method, DATA, RECIPE, progress=False)
    assert found.run.point is not None
    net = network()
    with torch.no_grad():
        for name, value in found.run.point.items():
            layer = name.removesuffix(".weight")
            mask = masks(found.net).get(layer)
            dict(net.named_parameters())[name].copy_(value if mask is None or layer == name else value * mask)
    alone = fit(net, pr.Masked(), DATA, RECIPE, start=3, folder=tmp_path, progress=False)
    assert len(alone.rows) == RECIPE.epochs
    for name, value in net.named_parameters():
        assert torch.equal(value, found.net.get_parameter(name)), name
    again = fit(network(), pr.Masked(), DATA, RECIPE, start=3, folder=tmp_path, progress=False)
    assert same_state(alone.net.state_dict(), again.net.state_dict())
    with pytest.raises(pr.train.CheckpointError, match="belongs to another run"):
        fit(network(), pr.Masked(), DATA, RECIPE, start=2, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="start = 10"):
        fit(network(), pr.Masked(), DATA, RECIPE, start=2 * STEPS, progress=False)


@pytest.mark.parametrize(
    "method",
    [
        imp(),
        pr.ContinuousSparsification(density=0.3, searches=1, rewind=2),
        pr.L0(price=pr.Budget(params=0.4), hold=pr.Hold(0.5, rewind=2)),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_compiled_rounds_are_the_same_rounds(method: pr.Method, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled in one round sees the masks, the weights and the settled gates of the next."""
    real, calls = torch.compile, []

    def compiling(net: nn.Module) -> Any:
        calls.append(net)
        return real(net, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compiling)
    recipe = replace(RECIPE, epochs=2, batch=400, bf16=bf16, lr=0.05)
    plain, compiled = (
        fit(network(), method, DATA, replace(recipe, compile=on), progress=False) for on in (False, True)
    )
    assert calls == [compiled.run.net]
    tolerance = 0.05 if bf16 else 1e-4
    losses, others = ([row["loss"] for row in done.rows] for done in (plain, compiled))
    assert others == pytest.approx(losses, rel=tolerance)
    for (_, _, a), (_, _, b) in zip(gates(plain.net), gates(compiled.net), strict=True):
        agree = (a.support() == b.support()).double().mean()
        assert agree == 1 if not bf16 else agree > 0.95
    small, other = plain.run.finish(), compiled.run.finish()
    x = DATA.test.x[:200]
    with torch.no_grad():
        assert (small(x).argmax(1) == other(x).argmax(1)).double().mean() > (0.9 if bf16 else 0.999)
