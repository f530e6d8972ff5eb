"""Optimizers whose memory a cut cannot take along: refused before anything is cut, however they keep it."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.core import gates
from paring.run.surgery.optimizer_memory import check_memory

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


class Custom(torch.optim.SGD):
    """SGD that also remembers what `remember(optimizer, parameter, step)` says."""

    def __init__(self, params: Any, remember: Callable[[Any, Tensor, int], None]) -> None:
        super().__init__(params, lr=0.01, momentum=0.9)
        self.remember, self.number = remember, 0

    def step(self, closure: Any = None) -> Any:
        super().step()
        self.number += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                self.remember(self, parameter, self.number)


class Quadrants:
    """An object that keeps tensors."""

    def __init__(self, parameter: Tensor) -> None:
        self.blocks = {"first": [torch.zeros_like(parameter)]}


class Inner(torch.optim.Optimizer):
    """An optimizer around another one, as Lookahead is; `shared`: with the state of that one, as in accelerate."""

    def __init__(self, params: Any, shared: bool, extra: object = None) -> None:
        self.optimizer = torch.optim.Adam(params, 0.01)
        super().__init__(self.optimizer.param_groups, {})
        self.param_groups = self.optimizer.param_groups
        if shared:
            self.state = self.optimizer.state
        self.optimizer.extra = extra  # type: ignore[attr-defined]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()


def in_state(make: Callable[[Tensor], object]) -> Callable[[Any, Tensor, int], None]:
    return lambda opt, p, _: opt.state[p].__setitem__("odd", make(p))


def slow(opt: Any, _: Tensor, number: int) -> None:
    opt.param_groups[0]["slow_weights"] = [p.detach().clone() for p in opt.param_groups[0]["params"]]


def by_number(opt: Any, p: Tensor, _: int) -> None:
    opt.state["all"] = {"flat": torch.zeros(100)}


def attribute(make: Callable[[Tensor], object]) -> Callable[[Any, Tensor, int], None]:
    return lambda opt, p, _: opt.__dict__.setdefault("shadow", []).append(make(p))


ODD: dict[str, tuple[Callable[[Any, Tensor, int], None], str]] = {
    "list of matrices": (in_state(lambda p: [torch.eye(n) for n in p.shape]), "keeps 'odd', a list, for a parameter"),
    "tuple": (in_state(lambda p: (torch.zeros_like(p),)), "keeps 'odd', a tuple"),
    "queue": (in_state(lambda p: deque([torch.zeros_like(p)])), "keeps 'odd', a deque"),
    "nested dict": (in_state(lambda p: {"first": {"m": torch.zeros_like(p)}}), "keeps 'odd', a dict"),
    "object": (in_state(Quadrants), "keeps 'odd', a Quadrants"),
    "matrix of rows": (
        in_state(lambda p: torch.eye(p.shape[0])),
        r"keeps 'odd' of shape \(10, 10\) for a parameter of shape",
    ),
    "factored": (
        in_state(lambda p: torch.zeros(p.shape[0])),
        r"keeps 'odd' of shape \(10,\) for a parameter of shape \(10, 6\)",
    ),
    "flat": (in_state(lambda p: torch.zeros(p.numel() + 1)), r"keeps 'odd' of shape \(61,\)"),
    "state that is no dict": (
        lambda opt, p, _: opt.state.__setitem__(p, [torch.zeros_like(p)]),
        "keeps a list for a parameter",
    ),
    "slow weights in the groups": (slow, "outside of its state .'slow_weights' in its parameter groups"),
    "state by name": (by_number, "outside of its state .state of something that is no parameter"),
    "list in an attribute": (attribute(torch.zeros_like), "outside of its state .its attribute 'shadow'"),
    "dict in an attribute": (attribute(lambda p: {id(p): torch.zeros_like(p)}), "its attribute 'shadow'"),
    "object in an attribute": (attribute(Quadrants), "its attribute 'shadow'"),
    "another optimizer": (
        attribute(lambda p: torch.optim.Adam([nn.Parameter(p.detach())])),
        "another optimizer inside, a Adam with a state of its own",
    ),
}


def attached(every: int, sizes: tuple[int, ...] = (6, 10, 3), bias: bool = True) -> tuple[nn.Sequential, pr.Run]:
    """A network of which some units are closed for good, and its run."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    shrink = pr.Shrink(every=every, multiple_of=1, saving=0.0, measure=False)
    run = pr.attach(net, pr.Stack(pr.L0(at="units", price=0.01), shrink), X)
    for _, _, gate in gates(net):
        gate.log_alpha.data[4:] = -5.0  # type: ignore[operator, union-attr]
        gate.freeze()  # type: ignore[operator]
    return net, run


def move(net: nn.Module, run: pr.Run, opt: Any) -> None:
    opt.zero_grad()
    F.cross_entropy(net(X), Y).backward()
    run.step(opt)


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", ODD)
def test_odd_memory_is_refused_at_the_first_step(name: str) -> None:
    remember, message = ODD[name]
    net, run = attached(every=1)
    before = shapes(net)
    with pytest.raises(TypeError, match=rf"Custom .*{message}.*so the network cannot shrink while it trains"):
        move(net, run, Custom(run.parameter_groups(0.01), remember))
    assert shapes(net) == before
    assert not run.shrinks


@pytest.mark.parametrize("name", ODD)
def test_odd_memory_that_comes_later_is_refused_before_the_cut(name: str) -> None:
    remember, message = ODD[name]
    net, run = attached(every=3)
    opt = Custom(run.parameter_groups(0.01), lambda o, p, number: remember(o, p, number) if number == 3 else None)
    for _ in range(2):
        move(net, run, opt)
    before, kept = shapes(net), {p: s["momentum_buffer"] for p, s in opt.state.items()}
    with pytest.raises(TypeError, match=message):
        move(net, run, opt)
    assert shapes(net) == before
    assert name == "state that is no dict" or all(opt.state[p]["momentum_buffer"] is kept[p] for p in kept)


@pytest.mark.parametrize("name", ODD)
def test_odd_memory_of_a_companion_is_refused_before_the_cut(name: str) -> None:
    remember, message = ODD[name]
    net, run = attached(every=1)
    other = Custom(net.parameters(), remember)
    run.track(other)
    before = shapes(net)
    opt = torch.optim.SGD(run.parameter_groups(0.01), 0.01)
    F.cross_entropy(net(X), Y).backward()
    other.step()
    with pytest.raises(TypeError, match=message):
        run.step(opt)
    assert shapes(net) == before


@pytest.mark.parametrize("shared", [True, False])
def test_an_optimizer_around_another_one(shared: bool) -> None:
    net, run = attached(every=2)
    opt = Inner(run.parameter_groups(0.01), shared)
    if not shared:
        with pytest.raises(TypeError, match="another optimizer inside, a Adam with a state of its own"):
            move(net, run, opt)
        return
    for _ in range(4):
        move(net, run, opt)
    assert net[0].weight.shape == (4, 6)
    assert opt.optimizer.state[net[0].weight]["exp_avg"].shape == (4, 6)


def test_what_the_inner_optimizer_keeps_besides() -> None:
    net, run = attached(every=2)
    with pytest.raises(TypeError, match=r"outside of its state \(its attribute 'extra'"):
        move(net, run, Inner(run.parameter_groups(0.01), True, {"old": torch.zeros(10, 6)}))


def harmless(opt: Any, p: Tensor, number: int) -> None:
    opt.state[p] |= {"n": number, "rate": 0.1, "why": "none", "no": None, "on": True, "t": torch.tensor(1.0)}
    opt.state[p]["count"] = torch.tensor([float(number)])
    opt.state[p]["mean"] = torch.zeros([*p.shape[:-1], 1]) if p.dim() > 1 else torch.zeros_like(p)
    opt.state["steps"] = number
    opt.param_groups[0] |= {"betas": (0.9, 0.99), "k": torch.tensor(3), "names": ["a"], "function": torch.zeros}
    opt.all_parameters = [q for group in opt.param_groups for q in group["params"]]
    opt.network, opt.rate, opt.history = nn.Linear(3, 3), torch.tensor([0.1]), [0.1] * number


def test_numbers_and_references_go_along() -> None:
    net, run = attached(every=2)
    opt = Custom(run.parameter_groups(0.01), harmless)
    opt.myself = opt  # type: ignore[attr-defined]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    for _ in range(4):
        move(net, run, opt)
        scheduler.step()
    assert net[0].weight.shape == (4, 6)
    own = opt.state[net[0].weight]
    assert own["momentum_buffer"].shape == (4, 6)
    assert own["mean"].shape == (4, 1)
    assert own["count"].shape == (1,)
    assert own["n"] == 4


@pytest.mark.parametrize("sizes", [(6, 6, 6), (6, 6, 3)])
def test_square_matrices_are_told_from_preconditioners(sizes: tuple[int, ...]) -> None:
    """Where all weights are square, a preconditioner of the rows looks like the weight, and is not cut like it."""
    net, _ = attached(every=1, sizes=sizes, bias=False)
    weights = [net[0].weight, net[2].weight]
    opt = Custom(weights, in_state(lambda p: torch.zeros_like(p)))
    for p in weights:
        p.grad = torch.zeros_like(p)
    opt.step()
    if sizes[-1] == 3:
        check_memory(opt, net.parameters())  # the other weight shows what it is
    else:
        with pytest.raises(
            TypeError, match=r"of shape \(6, 6\) for parameters of shape \(6, 6\) and for no other matrix"
        ):
            check_memory(opt, net.parameters())
        adam = torch.optim.Adam(weights)
        adam.step()
        check_memory(adam, net.parameters())  # torch's own are known


def test_forgetting_says_what_is_not_forgotten() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    run = pr.attach(net, pr.IMP(prunings=2, rate=0.5), X, steps=1)
    opt = Custom(run.parameter_groups(0.01), slow)
    move(net, run, opt)
    with pytest.warns(pr.ParingWarning, match=r"Custom keeps a tensor .*'slow_weights' .*is not forgotten"):
        assert run.next_round(opt)
    assert not opt.state
    del opt.param_groups[0]["slow_weights"]
    opt.remember = lambda *_: None
    move(net, run, opt)
    assert run.next_round(opt)  # nothing to say


def test_every_optimizer_of_torch_is_judged_alike_on_a_copy() -> None:
    net, _ = attached(every=1)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.ASGD, torch.optim.Rprop):
        copy_ = copy.deepcopy(net)
        opt = kind(copy_.parameters(), lr=0.01)  # type: ignore[call-arg]
        F.cross_entropy(copy_(X), Y).backward()
        opt.step()
        check_memory(opt, copy_.parameters())
