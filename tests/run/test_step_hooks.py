"""A run that follows an optimizer's own steps trains as one that is told of them, and the loop stays as it is."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring.core import gates
from paring.testing import ZOO, Chain, Row, chain_batch, same_state

pytestmark = CUT_SHORT

STEPS = 20  # rows of the zoo that shrink do so in these
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=5e-3),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=1e-2, fused=True),
}
SOME = ("l0 several places", "l0 rewound and shrinking", "rigl", "soft threshold", "binary network losing units")
every = pytest.mark.parametrize("row", ZOO, ids=lambda row: row.name)


def attached(
    row: Row, make: Callable[..., torch.optim.Optimizer], *, follow: bool
) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    """A network of float64 that trains `STEPS` steps; the loop calls the run, or the run follows the optimizer."""
    torch.manual_seed(0)
    net = row.net().double()
    x, y = chain_batch(30, dtype=torch.float64)
    opt = make(net.parameters()) if follow else None
    run = pr.attach(
        net,
        row.make(),
        x[:2],
        optimizer=opt,
        steps=STEPS,
        epoch_steps=10,
        loss=lambda copy_: F.cross_entropy(copy_(x), y),
    )
    if opt is None:
        given = make(net.parameters()).param_groups[0]
        groups = run.parameter_groups(lr=given["lr"], weight_decay=given.get("weight_decay", 0.0))
        opt = make([{name: group[name] for name in group if name in given or name == "name"} for group in groups])
    return net, run, opt


def train(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int, *, follow: bool) -> None:
    for _ in range(steps):
        x, y = chain_batch(dtype=torch.float64)
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        (loss if follow else loss + run.penalty()).backward()
        opt.step() if follow else run.step(opt)


def close(one: nn.Module, other: nn.Module, *, loose: bool = False) -> bool:
    """Whether two networks of float64 are alike up to the order of a few additions; loose: norms may have seen more."""
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    return all(
        torch.allclose(value.double(), theirs[name].double(), rtol=1e-9, atol=1e-11)
        for name, value in one.state_dict().items()
        if not (loose and ("running" in name or "num_batches" in name))
        if value.shape == theirs[name].shape or pytest.fail(f"{name}: {value.shape} and {theirs[name].shape}")
    )


def check_same(row: Row, name: str) -> None:
    told, told_run, opt = attached(row, OPTIMIZERS[name], follow=False)
    train(told, told_run, opt, STEPS, follow=False)
    net, run, opt = attached(row, OPTIMIZERS[name], follow=True)
    train(net, run, opt, STEPS, follow=True)
    assert run.clock == told_run.clock
    assert [record["step"] for record in run.shrinks] == [record["step"] for record in told_run.shrinks]
    assert bool(run.shrinks) == ("shrinking" in row.name or "losing units" in row.name or "retiring" in row.name)
    assert close(net, told)
    if not row.make().has_penalty:
        assert same_state(net.state_dict(), told.state_dict())


@every
def test_the_same_training_as_with_the_penalty_in_the_loss(row: Row) -> None:
    """Bit for bit where there is no penalty, else up to the order in which gradients are added."""
    check_same(row, "adamw fused")


@pytest.mark.parametrize("row", [row for row in ZOO if row.name in SOME], ids=lambda row: row.name)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_same_training_with_other_optimizers(row: Row, name: str) -> None:
    check_same(row, name)


@pytest.mark.parametrize("row", [row for row in ZOO if row.make().rounds > 1], ids=lambda row: row.name)
def test_rounds(row: Row) -> None:
    found = []
    for follow in (False, True):
        net, run, opt = attached(row, OPTIMIZERS["sgd"], follow=follow)
        while True:
            train(net, run, opt, STEPS, follow=follow)
            if not run.next_round(opt):
                break
        found.append(net)
        assert run.clock.round == run.method.rounds - 1
    assert close(*found)


L0 = next(row for row in ZOO if row.name == "l0 several places")
BUDGET = next(row for row in ZOO if row.name == "l0 budget")
SHRINKING = next(row for row in ZOO if row.name == "l0 shrinking")
RIGL = next(row for row in ZOO if row.name == "rigl")


# --- learning rates -------------------------------------------------------------------------------------------------


def schedulers() -> Iterator[Any]:
    of = torch.optim.lr_scheduler
    yield "LambdaLR", lambda opt: of.LambdaLR(opt, lambda step: 0.9**step)
    yield "OneCycleLR", lambda opt: of.OneCycleLR(opt, max_lr=0.05, total_steps=STEPS + 2)
    yield "CosineAnnealingLR", lambda opt: of.CosineAnnealingLR(opt, STEPS, eta_min=1e-3)
    yield "CyclicLR", lambda opt: of.CyclicLR(opt, 0.01, 0.05, step_size_up=7)
    yield "ReduceLROnPlateau", lambda opt: of.ReduceLROnPlateau(opt, patience=1, min_lr=1e-4)
    yield (
        "SequentialLR",
        lambda opt: of.SequentialLR(opt, [of.LinearLR(opt, total_iters=5), of.ExponentialLR(opt, 0.9)], milestones=[5]),
    )


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch 2.7 says it to itself
@pytest.mark.parametrize("early", [True, False], ids=["made before attach", "made after"])
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in schedulers()])
def test_gates_follow_the_rate_of_the_weights_under_any_scheduler(make: Callable[..., Any], early: bool) -> None:
    torch.manual_seed(0)
    net, x = Chain(), chain_batch()[0]
    opt = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    schedule = make(opt) if early else None
    run = pr.attach(net, pr.L0(price=1e-3, gate_lr=7.0), x[:2], optimizer=opt, steps=STEPS)
    schedule = schedule or make(opt)
    seen: list[dict[str, float]] = []

    def look(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held = {id(p): group for group in opt.param_groups for p in group["params"]}
        gate = next(gate for _, _, gate in gates(net))
        seen.append({"weights": held[id(net.conv1.weight)]["lr"], "gates": held[id(next(gate.parameters()))]["lr"]})
        assert held[id(next(gate.parameters()))]["momentum"] == held[id(net.conv1.weight)]["momentum"]

    opt.register_step_pre_hook(look)
    for _ in range(STEPS):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), chain_batch()[1])
        loss.backward()
        opt.step()
        schedule.step(1.0) if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) else schedule.step()
        assert len(opt.param_groups) == 1
    assert run.clock.step == STEPS
    assert len({one["weights"] for one in seen}) > 3
    assert all(one["gates"] == one["weights"] * 7.0 for one in seen)


def test_gates_follow_the_group_of_the_layer_that_they_are_in() -> None:
    net, x = Chain(), chain_batch()[0]
    near = [*net.conv1.parameters(), *net.norm1.parameters()]  # a unit's gate is behind its norm
    first = {"params": near, "lr": 0.5, "weight_decay": 0.25}
    others = [p for p in net.parameters() if not any(p is one for one in near)]
    opt = torch.optim.AdamW([first, {"params": others, "lr": 0.1}], weight_decay=0.125)
    run = pr.attach(net, pr.L0(price=1e-3, gate_lr=2.0), x[:2], optimizer=opt)
    found = []
    opt.register_step_pre_hook(
        lambda opt, args, kwargs: found.extend((g["lr"], g["weight_decay"], len(g["params"])) for g in opt.param_groups)
    )
    net(x).sum().backward()
    opt.step()
    of_gates = [len(list(gate.parameters())) for _, _, gate in gates(net)]
    assert found == [(0.5, 0.25, len(near)), (0.1, 0.125, len(others)), (1.0, 0.0, 1), (0.2, 0.0, sum(of_gates) - 1)]
    assert [len(group["params"]) for group in opt.param_groups] == [len(near) + 1, len(others) + sum(of_gates) - 1]
    assert run.clock.step == 1


def test_gates_that_want_decay_get_it() -> None:
    net, x = Chain(), chain_batch()[0]
    opt = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.5)
    pr.attach(net, pr.STR(s_init=-4.0, gate_lr=3.0), x[:2], optimizer=opt)
    found = []
    opt.register_step_pre_hook(
        lambda opt, args, kwargs: found.extend((g["lr"], g["weight_decay"]) for g in opt.param_groups)
    )
    net(x).sum().backward()
    opt.step()
    assert found == [(0.1, 0.5), (pytest.approx(0.3), 0.5)]


def test_named_parameters_keep_their_names() -> None:
    net, x = Chain(), chain_batch()[0]
    opt = torch.optim.Adam(net.named_parameters(), lr=1e-3)
    pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=opt)
    for _ in range(2):
        net(x).sum().backward()
        opt.step()
        (group,) = opt.param_groups
        own = {id(p): name for name, p in net.named_parameters()}
        assert [own[id(p)] for p in group["params"]] == group["param_names"]
        assert sorted(group["param_names"]) == sorted(own.values())


class Counting(torch.optim.Optimizer):
    """An average over steps whose weights are those of its own rate, kept in the group, as in schedule-free optimizers."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "count": 0, "total": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            group["total"] += group["lr"] ** 2
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"] * group["lr"] ** 2 / group["total"] * group["count"])


def test_what_an_optimizer_writes_into_its_groups_is_kept_for_the_gates_too() -> None:
    told, told_run, opt = attached(L0, lambda p: Counting(p, lr=5e-3), follow=False)
    train(told, told_run, opt, 10, follow=False)
    net, run, opt = attached(L0, lambda p: Counting(p, lr=5e-3), follow=True)
    train(net, run, opt, 5, follow=True)
    state, noise = pickle.loads(pickle.dumps((net.state_dict(), opt.state_dict()))), torch.get_rng_state()
    assert state[1]["param_groups"][0]["count"] == 5
    net, run, opt = attached(L0, lambda p: Counting(p, lr=5e-3), follow=True)
    net.load_state_dict(state[0])
    opt.load_state_dict(state[1])
    torch.set_rng_state(noise)
    train(net, run, opt, 5, follow=True)
    assert close(net, told)


OWN = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
]
NEEDS_MORE = {"LBFGS", "SparseAdam", "Muon"}  # refused; for sparse gradients; for matrices alone


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind.__name__ not in NEEDS_MORE])
def test_every_optimizer_of_torch(kind: Any) -> None:
    net, run, opt = attached(L0, lambda p: kind(p), follow=True)
    moving = [p for _, _, gate in gates(net) for p in gate.parameters()]
    before = [p.detach().clone() for p in moving]
    train(net, run, opt, 3, follow=True)
    assert run.clock.step == 3
    assert not any(torch.equal(old, new) for old, new in zip(before, moving, strict=True))


# --- which steps count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("row", [L0, BUDGET, SHRINKING, RIGL], ids=lambda row: row.name)
def test_a_step_that_the_scaler_skips_is_none(row: Row, fused: bool) -> None:
    """Scaled by a power of two, gradients are the same; those of some steps overflow."""

    def trained(bad: tuple[int, ...]) -> tuple[nn.Module, pr.Run]:
        net, run, opt = attached(row, lambda p: torch.optim.AdamW(p, lr=5e-3, fused=fused), follow=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6, backoff_factor=0.5)
        torch.manual_seed(1)
        batches = [chain_batch(dtype=torch.float64) for _ in range(STEPS)]
        for x, y in batches:
            for overflow in (True, False) if run.clock.step in bad else (False,):
                opt.zero_grad()
                noise = torch.get_rng_state()
                loss = F.cross_entropy(net(x), y)
                scaler.scale(loss).backward()
                if overflow:
                    net.conv1.weight.grad.fill_(torch.inf)
                    torch.set_rng_state(noise)
                step = run.clock.step
                scaler.step(opt)
                scaler.update()
                assert run.clock.step == step + (not overflow)
        return net, run

    straight, run = trained(())
    skipping, again = trained((0, 3, 11, STEPS - 1))
    assert run.clock.step == again.clock.step == STEPS
    assert close(skipping, straight, loose=True)


def test_the_penalty_is_not_scaled_and_not_clipped() -> None:
    grads = []
    for scale in (None, 2.0**12):
        for fused in (False, True):
            torch.manual_seed(0)
            net, x = Chain(), chain_batch()[0]
            opt = torch.optim.Adam(net.parameters(), lr=0.0, fused=fused)
            pr.attach(net, pr.L0(price=1e-2), x[:2], optimizer=opt)
            scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
            torch.manual_seed(1)
            scaler.scale(net(x).sum()).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(net.parameters(), 1e-9)
            scaler.step(opt)
            found = [p.grad.clone() for _, _, gate in gates(net) for p in gate.parameters()]
            assert all(float(one.norm()) > 1e-4 for one in found)  # far more than the clip leaves of the loss
            grads.append(found)
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-8)


def test_accumulation_counts_steps_of_the_optimizer() -> None:
    found = []
    for parts in (1, 2):
        net, run, opt = attached(BUDGET, OPTIMIZERS["sgd"], follow=True)
        net.eval()  # without noise, two halves are the whole
        for _ in range(STEPS):
            torch.manual_seed(run.clock.step)
            x, y = chain_batch(16, dtype=torch.float64)
            opt.zero_grad()
            for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(net(xs), ys) / parts).backward()
            opt.step()
        assert run.clock.step == STEPS
        found.append(net)
    assert close(*found)


def test_a_closure_that_is_called_once_is_the_same() -> None:
    """Lightning and skorch give one to every step."""
    told, told_run, opt = attached(BUDGET, OPTIMIZERS["adam"], follow=False)
    train(told, told_run, opt, STEPS, follow=False)
    for by_name in (True, False):
        net, run, opt = attached(BUDGET, OPTIMIZERS["adam"], follow=True)
        losses = []

        def closure(net: nn.Module = net, opt: torch.optim.Optimizer = opt) -> Tensor:
            x, y = chain_batch(dtype=torch.float64)
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        for _ in range(STEPS):
            losses.append(opt.step(closure=closure) if by_name else opt.step(closure))
        assert run.clock.step == STEPS
        assert all(isinstance(loss, Tensor) for loss in losses)
        assert close(net, told)


class Twice(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


class Never(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step()


def test_closures_that_are_called_more_often_or_not_at_all_are_refused() -> None:
    x = chain_batch()[0]
    for kind, text in ((Twice, "Twice computes the loss several times in one step"), (Never, "did not call it")):
        net = Chain()
        opt = kind(net.parameters(), lr=0.1)
        run = pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=opt)
        with pytest.raises(RuntimeError, match=text):
            opt.step(lambda net=net: net(x).sum().backward())
        assert run.clock.step == 0
    net = Chain()
    with pytest.raises(TypeError, match="LBFGS computes the loss several times in one step"):
        pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=torch.optim.LBFGS(net.parameters()))
    pr.attach(net, pr.L0(price=1e-3), x[:2])  # the network is as it was


class Inner(torch.optim.SGD):
    """Its step calls that of SGD, which has hooks of its own once an SGD was made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_within_a_step_counts_once() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert torch.optim.SGD.step.hooked
    assert Inner.step is not torch.optim.SGD.step
    found = []
    for kind in (torch.optim.SGD, Inner):
        net, run, opt = attached(BUDGET, lambda p, kind=kind: kind(p, lr=0.02, momentum=0.9), follow=True)
        train(net, run, opt, 10, follow=True)
        assert run.clock.step == 10
        found.append(net)
    assert same_state(found[0].state_dict(), found[1].state_dict())


class Failing(torch.optim.SGD):
    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise MemoryError
        return super().step(closure)


def test_a_step_that_raises_is_none_and_leaves_no_trace() -> None:
    found = []
    for kind in (torch.optim.SGD, Failing):
        net, run, opt = attached(BUDGET, lambda p, kind=kind: kind(p, lr=0.02, momentum=0.9), follow=True)
        for step in range(10):
            if kind is Failing and step in (0, 4):
                noise = torch.get_rng_state()
                opt.fails = True
                with pytest.raises(MemoryError):
                    train(net, run, opt, 1, follow=True)
                opt.fails = False
                torch.set_rng_state(noise)
            train(net, run, opt, 1, follow=True)
        assert run.clock.step == 10
        assert len(opt.param_groups) == 1
        found.append(net)
    assert close(*found, loose=True)


# --- mixing, moving, refusing ---------------------------------------------------------------------------------------


def test_mixing_counts_once() -> None:
    told, told_run, opt = attached(L0, OPTIMIZERS["adam"], follow=True)
    train(told, told_run, opt, STEPS, follow=True)
    for how in ("run.step", "around"):
        net, run, opt = attached(L0, OPTIMIZERS["adam"], follow=True)
        for _ in range(STEPS):
            x, y = chain_batch(dtype=torch.float64)
            opt.zero_grad()
            price = run.penalty()
            assert float(price) > 0
            assert not price.requires_grad
            (F.cross_entropy(net(x), y) + price).backward()
            if how == "run.step":
                run.step(opt)
            else:
                run.before_step(opt)
                opt.step()
                run.after_step(opt)
        assert run.clock.step == STEPS
        assert same_state(net.state_dict(), told.state_dict())
    with pytest.raises(ValueError, match="follows the steps of another optimizer"):
        run.step(torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_run_moves_on_to_another_optimizer() -> None:
    net, run, old = attached(BUDGET, OPTIMIZERS["sgd"], follow=True)
    train(net, run, old, 2, follow=True)
    new = torch.optim.Adam(net.parameters(), lr=5e-3)  # made after attach: it has the gates already
    run.follow(new)
    run.follow(new)
    train(net, run, old, 2, follow=True)
    assert run.clock.step == 2
    train(net, run, new, 3, follow=True)
    assert run.clock.step == 5
    assert len(new.param_groups) == 1


def test_groups_that_the_run_made_keep_their_rates() -> None:
    net, run, opt = attached(BUDGET, OPTIMIZERS["adam"], follow=False)
    twin, twin_run, same = attached(BUDGET, OPTIMIZERS["adam"], follow=False)
    run.follow(opt)
    for one, its, that, follow in ((net, run, opt, True), (twin, twin_run, same, False)):
        torch.manual_seed(1)
        train(one, its, that, STEPS, follow=follow)
    assert run.clock == twin_run.clock
    assert close(net, twin)


def test_an_optimizer_of_something_else_is_refused() -> None:
    x = chain_batch()[0]
    net, other = Chain(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="holds no parameter of the Chain"):
        pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"follows a torch.optim.Optimizer, not list"):
        pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=[])  # type: ignore[arg-type]
    pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=torch.optim.SGD(net.parameters(), lr=0.1))


def test_an_optimizer_without_a_rate_is_said() -> None:
    class NoRate(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": None})

        def step(self, closure: Any = None) -> None:
            pass

    net, x = Chain(), chain_batch()[0]
    opt = NoRate(net.parameters())
    pr.attach(net, pr.L0(price=1e-3), x[:2], optimizer=opt)
    net(x).sum().backward()
    with pytest.warns(
        pr.ParingWarning, match="NoRate has no learning rate of its own, so the gates do not get 10 times"
    ):
        opt.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()


def test_a_copy_of_the_optimizer_is_not_followed() -> None:
    net, run, opt = attached(BUDGET, OPTIMIZERS["sgd"], follow=True)
    train(net, run, opt, 1, follow=True)
    (net2, run2, opt2) = copy.deepcopy((net, run, opt))
    train(net2, run2, opt2, 1, follow=True)
    assert run2.clock.step == 1
    run2.follow(opt2)
    train(net2, run2, opt2, 1, follow=True)
    assert (run.clock.step, run2.clock.step) == (1, 2)


def test_what_never_stepped_is_said() -> None:
    _net, run, _ = attached(BUDGET, OPTIMIZERS["sgd"], follow=True)
    with pytest.warns(pr.ParingWarning) as caught:
        run.finish()
    assert any(
        f"the optimizer that the run follows never made a step (step 0 of {STEPS})" in str(w.message) for w in caught
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_step() -> None:
    torch._dynamo.reset()
    net, run, opt = attached(L0, OPTIMIZERS["sgd"], follow=True)
    twin, twin_run, same = attached(L0, OPTIMIZERS["sgd"], follow=True)
    compiled = torch.compile(opt.step, backend="eager")
    for _ in range(3):
        x, y = chain_batch(dtype=torch.float64)
        for one, its in ((net, opt), (twin, same)):
            torch.manual_seed(5)
            its.zero_grad()
            F.cross_entropy(one(x), y).backward()
        compiled()
        same.step()
    assert run.clock.step == twin_run.clock.step == 3
    assert close(net, twin)
