"""Held gates multiplied into the weights: the same function, and training that goes on as if it had always been so."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import gates, release, set_attachment
from paring.data import load
from paring.gates import StochasticGate
from paring.run.surgery.fold_gates import check_foldable, fold_gates
from paring.testing import Chain, difference, is_stock, same_state
from paring.train import Ema, Recipe, fit

pytestmark = [BY_HAND, CUT_SHORT]

F64 = torch.float64


class Residual(nn.Module):
    """Two blocks on a stream with norms, so that a gate acts in several modules. Input (B, 2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a1, self.n1 = nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.a2 = nn.Conv2d(10, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.a2(torch.relu(self.n1(self.a1(x))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(torch.relu(x), 1).flatten(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 18), nn.Tanh(), nn.Linear(18, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "mlp": (mlp, (20,), "units"),
    "inputs": (mlp, (20,), "inputs"),
    "weights": (mlp, (20,), "weights"),
    "convolutions": (lambda: Chain(16), (2, 8, 8), ("units:Conv2d", "inputs:Linear")),
    "residual": (Residual, (2, 6, 6), "units"),
    "columns": (Residual, (2, 6, 6), "inputs"),
}


def batch(shape: tuple[int, ...], size: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, *shape, dtype=F64)
    return x, x.flatten(1)[:, :3].argmax(1)


def prepared(net: str, closed: float = 0.0, method: pr.Method | None = None) -> tuple[nn.Module, pr.Run]:
    """A network with held gates of all values, some of them closed."""
    build, shape, places = NETS[net]
    torch.manual_seed(0)
    module = build().to(F64)
    l0 = pr.L0(price=0.0, at=places)
    run = pr.attach(module, l0 if method is None else pr.Stack(l0, method), batch(shape, 2)[0], epoch_steps=4)
    for _, _, gate in gates(module):
        assert isinstance(gate, StochasticGate)
        gate.log_alpha.data.uniform_(-2.0, 3.0)
        gone = torch.rand(gate.shape) < closed
        gone[..., 0] = False
        gate.log_alpha.data.masked_fill_(gone, -9.0)
        gate.freeze()
    return module, run


def train(net: nn.Module, run: pr.Run | None, opt: torch.optim.Optimizer, shape: tuple[int, ...], steps: int) -> None:
    for _ in range(steps):
        x, y = batch(shape)
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        if run is None:
            opt.step()
        else:
            run.step(opt)


def gates_of(net: nn.Module) -> list[StochasticGate]:
    return [gate for _, _, gate in gates(net) if isinstance(gate, StochasticGate)]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("closed", [0.0, 0.4])
def test_the_function_stays_and_gates_show_one(net: str, closed: float) -> None:
    module, run = prepared(net, closed)
    before, x = copy.deepcopy(module), batch(NETS[net][1], 30)[0]
    support = [gate.support() for gate in gates_of(module)]
    assert fold_gates(module, run.probe.example, [])
    assert not fold_gates(module, run.probe.example, []), "once is enough"
    with torch.no_grad():
        for mode in (True, False):
            assert float((before.train(mode)(x) - module.train(mode)(x)).abs().max()) < 1e-10
    for gate, was in zip(gates_of(module), support, strict=True):
        assert torch.equal(gate.value(), was.to(F64))
        assert gate.transparent == bool(was.all())
        assert not gate.log_alpha.requires_grad
    assert all(gate.transparent for gate in gates_of(module)) == (closed == 0)
    assert is_stock(small := run.finish())
    assert difference(small, before, x) < 1e-10


@pytest.mark.parametrize("net", ["mlp", "inputs", "weights", "convolutions"])
def test_adam_goes_on_as_in_a_network_without_gates(net: str) -> None:
    """By hand: gates multiplied into stock layers, moments divided by z and z squared."""
    shape = NETS[net][1]
    module, run = prepared(net)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2), fused=True)
    train(module, run, opt, shape, 5)
    stock = copy.deepcopy(module)
    set_attachment(stock, None)
    release(stock)
    theirs = torch.optim.Adam(stock.parameters(), lr=1e-2)
    plain = dict(module.named_parameters())
    for name, parameter in stock.named_parameters():
        state = opt.state[plain[name]]
        z = torch.where(plain[name] == 0, 1.0, parameter / plain[name]).detach()
        theirs.state[parameter] = {
            "step": state["step"].clone(),
            "exp_avg": state["exp_avg"] / z,
            "exp_avg_sq": state["exp_avg_sq"] / z**2,
        }
    assert fold_gates(module, run.probe.example, [opt])
    for seed, net_, run_, opt_ in ((3, module, run, opt), (3, stock, None, theirs)):
        torch.manual_seed(seed)
        train(net_.train(), run_, opt_, shape, 20)
    for name, parameter in stock.named_parameters():
        assert float((parameter - plain[name]).detach().abs().max()) < 1e-10, name


PLAIN = ("Adam", "AdamW", "NAdam", "RAdam", "Adagrad", "RMSprop", "Rprop", "ASGD")
EVERY: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.9, nesterov=True),
    **{name: getattr(torch.optim, name) for name in PLAIN},
    "Adamax": lambda g: torch.optim.Adamax(g, eps=1e-30),
    "Adadelta": lambda g: torch.optim.Adadelta(g, eps=1e-30),
    "amsgrad": lambda g: torch.optim.Adam(g, amsgrad=True),
    "centered RMSprop": lambda g: torch.optim.RMSprop(g, centered=True, momentum=0.9, eps=1e-30),
}


@pytest.mark.parametrize("name", EVERY)
def test_memory_is_what_it_would_be_had_the_gradients_always_been_those(name: str) -> None:
    module, run = prepared("mlp", 0.3)
    weight = module[0].weight
    z = module[0].gates()["units"].constant()[:, None]
    gradients = [torch.randn_like(weight) for _ in range(6)]

    def memory(scale: Tensor | float) -> dict[str, Any]:
        parameter = nn.Parameter(torch.zeros_like(weight))
        opt = EVERY[name]([parameter])
        for gradient in gradients:
            parameter.grad = gradient / scale
            opt.step()
        return opt.state[parameter]

    opt = EVERY[name](run.parameter_groups(lr=1e-3))
    opt.state[weight] = memory(1.0)
    average = opt.state[weight]["ax"].clone() if name == "ASGD" else None
    assert fold_gates(module, run.probe.example, [opt])
    for key, wanted in memory(z).items():
        if isinstance(wanted, Tensor) and wanted.dim():
            wanted = wanted if average is None else average * z  # an average of weights, not of gradients
            assert torch.allclose(opt.state[weight][key], wanted, rtol=1e-9, atol=1e-30), key


def test_gradients_follow() -> None:
    module, run = prepared("convolutions", 0.3)
    x, y = batch((2, 8, 8))
    F.cross_entropy(module(x), y).backward()
    assert fold_gates(module, run.probe.example, [])
    kept = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and "gate" not in name}
    module.zero_grad()
    F.cross_entropy(module(x), y).backward()
    for name, parameter in module.named_parameters():
        if name in kept:
            assert float((kept[name] - parameter.grad).abs().max()) < 1e-10, name


FOLD = pr.Shrink(every=2, multiple_of=8, saving=0.01, measure=False, fold=True)


def test_a_cut_follows_and_closed_units_stay_zero_and_untrained() -> None:
    module, run = prepared("mlp", 0.0, FOLD)
    first, second = gates_of(module)
    first.log_alpha.data[9:] = -9.0  # 9 of 24 are open, and 16 are kept: 7 dead ones
    second.log_alpha.data[8:] = -9.0  # 8 of 18, and 8 are kept
    opt = torch.optim.AdamW(run.parameter_groups(lr=1e-2, weight_decay=0.1))
    train(module, run, opt, (20,), 2)
    assert [layer.out_features for layer in (module[0], module[2])] == [16, 8]
    assert (first.folded, first.transparent, second.folded, second.transparent) == (True, False, True, True)
    dead = ~first.support()
    assert int(dead.sum()) == 7
    moments = opt.state[module[0].weight]["exp_avg"][dead].abs()
    train(module, run, opt, (20,), 5)
    x, _ = batch((20,))
    assert torch.equal(module[0](x)[:, dead], torch.zeros(12, 7, dtype=F64))
    x.requires_grad_()
    module[0].zero_grad()
    module(x).sum().backward()
    assert torch.equal(module[0].weight.grad[dead], torch.zeros_like(module[0].weight)[dead])
    assert bool((opt.state[module[0].weight]["exp_avg"][dead].abs() <= moments).all())
    small = run.finish()
    assert [small[0].out_features, small[2].out_features] == [9, 8]
    assert difference(small, module, batch((20,), 30)[0]) < 1e-10


def test_what_goes_on_sampling_is_left_alone() -> None:
    module, run = prepared("mlp", 0.0, FOLD)
    gate = gates_of(module)[1]
    gate.set_extra_state(torch.tensor(0))
    before = module[2].weight.detach().clone()
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    train(module, run, opt, (20,), 2)
    assert torch.equal(module[2].weight, before)
    assert not gate.folded
    assert gate.log_alpha.requires_grad
    gate.freeze()
    train(module, run, opt, (20,), 2)
    assert gate.transparent


def test_averages_and_copies_follow() -> None:
    module, run = prepared("convolutions", 0.3)
    ema, swa = Ema(module, 0.8), AveragedModel(module)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    for _ in range(3):
        train(module, run, opt, (2, 8, 8), 1)
        ema.update()
        swa.update_parameters(module)
    x, _ = batch((2, 8, 8), 30)
    swa.eval()
    with torch.no_grad(), ema.applied():
        averaged, also = module.eval()(x), swa(x)
    assert fold_gates(module, run.probe.example, [opt, ema, swa])
    with torch.no_grad(), ema.applied():
        assert float((module(x) - averaged).abs().max()) < 1e-10
        assert float((swa(x) - also).abs().max()) < 1e-10
    for mine, theirs in zip(gates_of(module), gates_of(swa.module), strict=True):
        assert same_state(mine.state_dict(), theirs.state_dict())
        assert (theirs.frozen, theirs.folded, theirs.transparent) == (True, True, mine.transparent)


def test_a_gate_of_several_modules_goes_into_all_of_them() -> None:
    module, run = prepared("residual")
    before = copy.deepcopy(module)
    assert fold_gates(module, run.probe.example, [])
    shared = [layer for layer in (module.norm, module.a2) if layer.gates()["units"].transparent]
    assert shared == [module.norm, module.a2]
    for name in ("norm.weight", "a2.weight", "a2.bias"):
        assert not torch.equal(module.get_parameter(name), before.get_parameter(name)), name


def test_refused_before_anything_changes() -> None:
    class Sly(nn.Module):
        """Uses a weight without calling its layer, but not yet while gates go in."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sly = nn.Linear(20, 8), nn.Linear(8, 3), False

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.tanh(self.a(x)))
            return y + self.a.weight.mean() if self.sly else y

    torch.manual_seed(0)
    net = Sly().to(F64)
    run = pr.attach(net, pr.L0(at="units"), batch((20,), 2)[0])
    net.sly = True
    for gate in gates_of(net):
        gate.log_alpha.data.fill_(0.3)
        gate.freeze()
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="uses the weights of a gated layer without calling"):
        fold_gates(net, run.probe.example, [])
    assert same_state(state, net.state_dict())

    module, run = prepared("mlp")
    state = copy.deepcopy(module.state_dict())
    opt = torch.optim.SGD(run.parameter_groups(lr=0.1), lr=0.1)
    opt.state[module[0].weight]["odd"] = torch.zeros(24, 20)
    with pytest.raises(TypeError, match=r"keeps 'odd', .* Use Shrink\(fold=False\)"):
        fold_gates(module, run.probe.example, [opt])
    assert same_state(state, module.state_dict())
    check_foldable(opt)
    with pytest.raises(TypeError, match="not known how the state of Adafactor follows"):
        check_foldable(torch.optim.Adafactor(module.parameters()))


def test_state_survives_copies_files_and_a_return() -> None:
    module, run = prepared("convolutions", 0.0, FOLD)
    early = copy.deepcopy(module.state_dict())
    fold_gates(module, run.probe.example, [])
    fresh, _ = prepared("convolutions", 0.0, FOLD)
    fresh.load_state_dict(module.state_dict())
    for copy_ in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert all(gate.transparent and not gate.log_alpha.requires_grad for gate in gates_of(copy_))
        assert difference(copy_, module, batch((2, 8, 8))[0]) == 0
    fresh.load_state_dict(early)
    assert all(gate.frozen and not gate.transparent and gate.log_alpha.requires_grad for gate in gates_of(fresh))


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits", validation=200)
    budget = pr.Budget(macs=0.4, ascent=20.0, multiple_of=8)
    method = pr.Stack(pr.L0(price=budget, at="units", hold=0.7), FOLD)
    recipe = Recipe(epochs=4, batch=200, lr=2e-3, ema=0.9)

    def run(folder: Path | None) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10))
        return fit(net, method, data, recipe, folder=folder, progress=False).net

    straight = run(None)
    assert all(gate.transparent for gate in gates_of(straight))
    assert all(p.shape[0] % 8 == 0 for name, p in straight.named_parameters() if not name.startswith("5"))
    seen: list[int] = []
    epoch = pr.train.Trainer.train_epoch

    def stopped(trainer: Any) -> dict[str, Any]:
        if trainer.epoch == 3:
            raise KeyboardInterrupt
        seen.append(trainer.epoch)
        return epoch(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(pr.train.Trainer, "train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert seen == [0, 1, 2]
    assert same_state(run(tmp_path).state_dict(), straight.state_dict())
