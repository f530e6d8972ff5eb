"""Shrinking while training: the same numbers as without, for every optimizer and everything that has the shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import Attachment, Inputs, TrainingState, attached, gates, set_attachment
from paring.gates import StochasticGate, expected, support
from paring.removal.slices import cut
from paring.run.surgery import live_cut as live
from paring.run.surgery.carry import Cuts
from paring.testing import Chain, difference, is_stock
from paring.train import Ema

pytestmark = [BY_HAND, CUT_SHORT]

F64 = torch.float64


class Residual(nn.Module):
    """Two blocks on a stream, the second one with a flattened head. Input (B, 2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.a1, self.n1, self.a2 = nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.Conv2d(10, 6, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a2(torch.relu(self.n1(self.a1(torch.relu(x)))))
        x = x + self.b2(torch.relu(self.b1(x)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 18), nn.Tanh(), nn.Linear(18, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "mlp": (mlp, (20,), "units"),
    "inputs": (mlp, (20,), "inputs"),
    "weights": (mlp, (20,), "weights"),
    "convolutions": (lambda: Chain(16), (2, 8, 8), ("units:Conv2d", "inputs:Linear")),
    "residual": (Residual, (2, 6, 6), ("units:a1|b1", "inputs:head")),
    "stream": (Residual, (2, 6, 6), "units"),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda g: torch.optim.SGD(g, lr=0.05, momentum=0.9),
    "adam": lambda g: torch.optim.Adam(g, lr=1e-3, fused=True),
    "adamw": lambda g: torch.optim.AdamW(g, lr=1e-3, weight_decay=0.01),
}


def batch(shape: tuple[int, ...], size: int = 12, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, *shape, dtype=dtype)
    return x, x.flatten(1)[:, :3].argmax(1)


def prepared(
    net: str, opt: Callable[[Any], torch.optim.Optimizer], method: pr.Method | None, dtype: torch.dtype = F64
) -> tuple[nn.Module, pr.Run, torch.optim.Optimizer]:
    """A network whose gates are half closed and settled, while the last gate goes on sampling."""
    build, shape, places = NETS[net]
    torch.manual_seed(0)
    module = build().to(dtype)
    l0 = pr.L0(price=1e-4, at=places, l2=1e-4, detach_l2=True)
    run = pr.attach(module, l0 if method is None else pr.Stack(l0, method), batch(shape, 2, dtype)[0], epoch_steps=4)
    settle(module)
    return module, run, opt(run.parameter_groups(lr=1e-3))


def settle(net: nn.Module) -> None:
    """Close entries of all gates at random for good, but leave the last gate alone."""
    generator = torch.Generator().manual_seed(1)
    found = [gate for _, _, gate in gates(net)]
    for gate in found[:-1]:
        assert isinstance(gate, StochasticGate)
        closed = torch.rand(gate.shape, generator=generator) < 0.5
        closed[..., 0] = False
        if closed.dim() > 1:
            closed[:, 1:9] = True  # units that nobody reads any more
        gate.log_alpha.data.masked_fill_(closed, -5.0)
        gate.freeze()


def train(
    net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, shape: tuple[int, ...], steps: int, after: Any = None
) -> list[float]:
    losses = []
    for _ in range(steps):
        x, y = batch(shape, dtype=next(net.parameters()).dtype)
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y) + run.penalty()
        loss.backward()
        run.step(opt)
        if after is not None:
            after()
        losses.append(loss.item())
    return losses


def surviving(small: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Of a tensor of the whole network, the part that the small one still has."""
    return cut(tensor, attached(small).state.kept.get(name, {}))


def settle_one(net: nn.Module, width: int) -> None:
    """Close all but the first `width` entries of every gate for good."""
    for _, _, gate in gates(net):
        assert isinstance(gate, StochasticGate)
        gate.log_alpha.data[width:] = -5.0
        gate.freeze()


SHRINK = pr.Shrink(every=2, multiple_of=4, saving=0.01, measure=False)


@pytest.mark.parametrize(
    ("net", "opt"),
    [
        *((net, opt) for net in ("mlp", "convolutions", "residual") for opt in OPTIMIZERS),
        *((net, "adam") for net in ("inputs", "weights", "stream")),
    ],
)
def test_same_parameters_with_and_without(net: str, opt: str) -> None:
    """Long after the cut for one optimizer on the network with most to carry, else until a wrong state would show."""
    shape, steps = NETS[net][1], 202 if (net, opt) == ("residual", "adam") else 52
    whole, run, its = prepared(net, OPTIMIZERS[opt], None)
    torch.manual_seed(1)
    train(whole, run, its, shape, steps)
    small, shrunk, theirs = prepared(net, OPTIMIZERS[opt], SHRINK)
    torch.manual_seed(1)
    train(small, shrunk, theirs, shape, steps)
    assert [record["step"] for record in shrunk.shrinks if record["done"]] == [2]
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in whole.parameters())
    theirs_by_name = dict(small.named_parameters())
    for name, parameter in whole.named_parameters():
        mine = surviving(small, name, parameter.detach())
        other = theirs_by_name[name].detach()
        assert mine.shape == other.shape
        assert float((mine - other).abs().max()) < 1e-10, name
    x, _ = batch(shape, 50)
    assert difference(whole, small, x) < 1e-10


@pytest.mark.parametrize("net", NETS)
def test_finish_gives_the_same_network(net: str) -> None:
    shape = NETS[net][1]
    whole, run, its = prepared(net, OPTIMIZERS["adam"], None)
    torch.manual_seed(1)
    train(whole, run, its, shape, 10)
    small, shrunk, theirs = prepared(net, OPTIMIZERS["adam"], SHRINK)
    torch.manual_seed(1)
    train(small, shrunk, theirs, shape, 10)
    one, other = run.finish(), shrunk.finish()
    assert is_stock(other)
    assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]
    assert difference(one, other, batch(shape, 50)[0]) < 1e-10
    assert float(run.cost().parameters) == float(shrunk.cost().parameters)
    for ask in (support, expected):
        with torch.no_grad():
            whole_macs, macs = float(run.cost(ask).macs), float(shrunk.cost(ask).macs)
            if (net, ask) == ("weights", expected):  # open weights of units that nobody reads are gone
                assert macs < whole_macs
            else:
                assert macs == pytest.approx(whole_macs, rel=1e-9)


PLAIN = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")
EVERY: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.9, nesterov=True),
    **{name: getattr(torch.optim, name) for name in PLAIN},
    "amsgrad": lambda g: torch.optim.Adam(g, amsgrad=True),
    "centered RMSprop": lambda g: torch.optim.RMSprop(g, centered=True, momentum=0.9),
    "Adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", EVERY)
def test_state_of_every_optimizer_is_carried(name: str) -> None:
    whole, run, its = prepared("convolutions", EVERY[name], None)
    torch.manual_seed(1)
    train(whole, run, its, (2, 8, 8), 12)
    small, shrunk, theirs = prepared("convolutions", EVERY[name], SHRINK)
    kept = [id(p) for group in theirs.param_groups for p in group["params"]]
    torch.manual_seed(1)
    train(small, shrunk, theirs, (2, 8, 8), 12)
    assert shrunk.shrinks[0]["done"]
    assert kept == [id(p) for group in theirs.param_groups for p in group["params"]]
    by_name = dict(small.named_parameters())
    for key, parameter in whole.named_parameters():
        close = float((surviving(small, key, parameter.detach()) - by_name[key].detach()).abs().max())
        assert close < (0.05 if name == "Adafactor" else 1e-10), key
        for field, value in its.state[parameter].items():
            other = theirs.state[by_name[key]][field]
            if not isinstance(value, Tensor) or value.dim() == 0:
                assert other == value
            elif name == "Adafactor":
                assert all(a in (b, 1) for a, b in zip(other.shape, by_name[key].shape, strict=True))
            else:
                assert float((surviving(small, key, value) - other).abs().max()) < 1e-10, field


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_carries_its_momentum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 24, bias=False), nn.ReLU(), nn.Linear(24, 3, bias=False))
    run = pr.attach(net, pr.Stack(pr.L0(at="units"), pr.Shrink(every=4, measure=False)), torch.randn(2, 20))
    settle_one(net, 8)
    weights = [p for name, p in net.named_parameters() if "gate" not in name]
    opt = torch.optim.Muon(weights, lr=1e-3)
    for step in range(6):
        x, y = batch((20,), dtype=torch.float32)
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        before = [opt.state[p]["momentum_buffer"].clone() for p in weights] if step else []
        opt.step()
        run.after_step(opt)
        if step == 3:
            assert [p.shape for p in weights] == [(8, 20), (3, 8)]
            assert [opt.state[p]["momentum_buffer"].shape for p in weights] == [(8, 20), (3, 8)]
            assert before[0].shape == (24, 20)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_optimizers_that_cannot_be_cut_are_refused_at_once(kind: Any) -> None:
    net, run, _ = prepared("mlp", OPTIMIZERS["sgd"], SHRINK)
    opt = kind(list(net.parameters()))
    with pytest.raises(TypeError, match=f"{kind.__name__} .* so the network cannot shrink while it trains"):
        run.after_step(opt)
    assert net[0].weight.shape == (24, 20)


def test_strange_state_is_refused_before_anything_changes() -> None:
    net, run, opt = prepared("mlp", OPTIMIZERS["sgd"], SHRINK)
    train(net, run, opt, (20,), 1)
    opt.state[net[0].weight]["odd"] = torch.zeros(7)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match=r"keeps 'odd' of shape \(7,\)"):
        train(net, run, opt, (20,), 1)
    assert {name: v.shape for name, v in net.state_dict().items() if isinstance(v, Tensor)} == {
        name: v.shape for name, v in before.items() if isinstance(v, Tensor)
    }


def test_averages_and_copies_shrink_along() -> None:
    net, run, opt = prepared("convolutions", OPTIMIZERS["adam"], SHRINK)
    whole, other, its = prepared("convolutions", OPTIMIZERS["adam"], None)
    averages = []
    for module, handle, optimizer in ((net, run, opt), (whole, other, its)):
        ema, swa = Ema(module, 0.8), AveragedModel(module)
        handle.track(ema, swa)
        torch.manual_seed(1)
        train(
            module,
            handle,
            optimizer,
            (2, 8, 8),
            12,
            lambda e=ema, s=swa, m=module: (e.update(), s.update_parameters(m)),
        )
        averages.append((ema, swa))
    assert run.shrinks[0]["done"]
    x, _ = batch((2, 8, 8), 30)
    with averages[0][0].applied(), averages[1][0].applied():
        assert difference(net, whole, x) < 1e-10
        small = run.finish()
    assert difference(averages[0][1].module, averages[1][1].module, x) < 1e-10
    assert is_stock(small)
    assert is_stock(run.finish(averages[0][1].module))


def test_what_cannot_shrink_along_is_refused() -> None:
    net, run, opt = prepared("mlp", OPTIMIZERS["adam"], SHRINK)
    with pytest.raises(TypeError, match="cannot shrink along"):
        run.track({"weights": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other parameters"):
        run.track(mlp())
    early = copy.deepcopy(net)
    train(net, run, opt, (20,), 2)
    assert run.shrinks[0]["done"]
    with pytest.raises(ValueError, match="before the network first shrank"):
        run.track(early)


def test_gradients_and_channels_last_survive() -> None:
    net, run, opt = prepared("convolutions", OPTIMIZERS["adam"], SHRINK, torch.float32)
    net.to(memory_format=torch.channels_last)
    train(net, run, opt, (2, 8, 8), 2)
    assert run.shrinks[0]["done"]
    weight = net.get_parameter("conv2.weight")
    assert weight.shape[1] < 16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
    assert opt.state[weight]["exp_avg"].stride() == weight.stride()
    train(net, run, opt, (2, 8, 8), 3)


@pytest.mark.parametrize("shape", [(20, 1, 5, 5), (20, 6, 5, 5), (20, 6, 1, 1), (20, 6, 3, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_cut_has_the_strides_of_a_fresh_tensor(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    whole = torch.randn(shape).to(memory_format=layout)
    whole = torch.empty(shape, memory_format=layout).copy_(whole)
    for dims in ({0: torch.tensor([1, 4, 7])}, {0: torch.arange(9), 1: torch.tensor([0])}):
        small = cut(whole, dims)
        expected_sizes = [len(dims[d]) if d in dims else n for d, n in enumerate(shape)]
        assert small.stride() == torch.empty(expected_sizes, memory_format=layout).stride()
        again = whole.contiguous()
        for d, keep in dims.items():
            again = again.index_select(d, keep)
        assert torch.equal(small, again)


def test_a_gradient_scaler_goes_on() -> None:
    net, run, opt = prepared("mlp", OPTIMIZERS["adam"], SHRINK, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for _ in range(6):
        x, y = batch((20,), dtype=torch.float32)
        opt.zero_grad()
        scaler.scale(F.cross_entropy(net(x), y) + run.penalty()).backward()
        scaler.unscale_(opt)
        run.before_step(opt)
        scaler.step(opt)
        scaler.update()
        run.after_step(opt)
    assert run.shrinks[0]["done"]
    assert run.clock.step == 6
    assert scaler.get_scale() == 2.0**11
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_scheduler_goes_on() -> None:
    net, run, opt = prepared("mlp", OPTIMIZERS["adam"], SHRINK, torch.float32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    train(net, run, opt, (20,), 6, schedule.step)
    assert run.shrinks[0]["done"]
    assert opt.param_groups[0]["lr"] == schedule.get_last_lr()[0] < 1e-3


@pytest.mark.slow
def test_compiled_network_is_compiled_anew() -> None:
    torch._dynamo.reset()
    net, run, opt = prepared("mlp", OPTIMIZERS["adam"], SHRINK, torch.float32)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(6):
        x, y = batch((20,), dtype=torch.float32)
        opt.zero_grad()
        (F.cross_entropy(compiled(x), y) + run.penalty()).backward()
        run.step(opt)
    assert run.shrinks[0]["done"]
    net.eval()
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))


def test_a_size_in_the_forward_is_spared() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 20), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x)).view(-1, 3, 4).flatten(1)
            logits: Tensor = self.c(torch.relu(self.b(x)))
            return logits

    torch.manual_seed(0)
    net = Written()
    run = pr.attach(net, pr.Stack(pr.L0(at="units"), SHRINK), torch.randn(2, 6))
    settle_one(net, 4)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
    train(net, run, opt, (6,), 2)
    assert run.shrinks[0]["widths"] == {"b": 4}
    assert net.a.out_features == 12


def test_norms_without_tensors_and_depthwise_convolutions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 12, 3), nn.InstanceNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    ).double()
    x, _ = batch((2, 8, 8))
    run = pr.attach(net, pr.Stack(pr.L0(at="inputs:7"), SHRINK), x)
    settle_one(net, 8)
    before = copy.deepcopy(net)
    opt = torch.optim.Adam(run.parameter_groups(lr=0.0))
    train(net, run, opt, (2, 8, 8), 2)
    assert run.shrinks[0]["widths"] == {"0": 8, "3": 8}
    assert net[3].groups == net[3].in_channels == net[1].num_features == 8
    assert difference(net, before, x) < 1e-12
    fresh = nn.Sequential(
        *(nn.Conv2d(2, 12, 3), nn.InstanceNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    ).double()
    again = pr.attach(fresh, run.method, x)
    again.load_state_dict(run.state_dict())
    fresh.load_state_dict(net.state_dict())
    assert difference(net, fresh, x) == 0


def test_zero_weights_without_a_closed_gate_stay() -> None:
    """A scale that starts at zero will grow; only what can never open again goes."""
    torch.manual_seed(0)
    net = Chain(8)
    nn.init.zeros_(net.norm1.weight)
    nn.init.zeros_(net.norm1.bias)
    run = pr.attach(net, pr.Stack(pr.L0(at="units:conv2"), SHRINK), torch.randn(2, 2, 8, 8))
    settle_one(net, 4)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
    train(net, run, opt, (2, 8, 8), 2)
    assert run.shrinks[0]["widths"] == {"conv2": 4}


def test_little_is_left_alone_and_slow_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_with(method: pr.Shrink) -> pr.Run:
        net, run, opt = prepared("mlp", OPTIMIZERS["adam"], method)
        train(net, run, opt, (20,), 4)
        return run

    assert run_with(pr.Shrink(every=2, multiple_of=1, saving=0.99, measure=False)).shrinks == []
    monkeypatch.setattr("paring.run.decide.step_times", lambda *_: (1.0, 2.0))
    records = run_with(pr.Shrink(every=1, multiple_of=1, saving=0.01)).shrinks
    assert len(records) == 3  # one slow measurement is not the last word, three are
    for record in records:
        assert not record["done"]
        assert record["why"] == "the step would not get faster"
        assert record["milliseconds"] == [1000.0, 2000.0]
    monkeypatch.setattr("paring.run.decide.step_times", lambda *_: (2.0, 1.0))
    assert run_with(pr.Shrink(every=2, multiple_of=1, saving=0.01)).shrinks[0]["done"]


def test_measuring_leaves_everything_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3)
    )
    run = pr.attach(net, pr.Stack(pr.L0(at="units"), pr.Shrink(every=1)), torch.randn(2, 512), batch=64)
    settle_one(net, 64)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
    x = torch.randn(64, 512)
    net(x).sum().backward()
    state = torch.get_rng_state()
    run.step(opt)
    assert torch.equal(state, torch.get_rng_state())
    (record,) = run.shrinks
    assert record["done"]
    assert record["milliseconds"][1] < record["milliseconds"][0]
    assert record["widths"] == {"0": 64, "3": 64}


def test_rounded_widths() -> None:
    for multiple, width in ((1, 9), (4, 12), (8, 16), (16, 16), (32, 9)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
        method = pr.Shrink(every=1, multiple_of=multiple, measure=False)
        run = pr.attach(net, pr.Stack(pr.L0(at="units"), method), torch.randn(2, 6))
        settle_one(net, 9)
        opt = torch.optim.SGD(run.parameter_groups(lr=1e-3), lr=0.1)
        train(net, run, opt, (6,), 1)
        assert net[0].out_features == net[2].in_features == width
        assert run.finish()[0].out_features == 9


def remembering() -> nn.Sequential:
    """A small network that cuts are noted in."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    set_attachment(net, Attachment(pr.L0()))
    return net


def hidden(*keep: int, **more: Any) -> Cuts:
    """These hidden units stay."""
    kept = torch.tensor(keep)
    return Cuts({"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}}, **more)


class Names:
    """Keeps tensors of the network's shapes, and what they were cut with."""

    def __init__(self) -> None:
        self.cuts: list[Any] = []

    def shrink(self, cut: Any) -> None:
        self.cuts.append(cut)


def test_a_cut_takes_network_copy_optimizer_and_whatever_carries_along() -> None:
    net, carrier = remembering(), Names()
    copy_, whole = copy.deepcopy(net), copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3)).sum().backward()
    opt.step()
    momentum, trained = opt.state[net[2].weight]["momentum_buffer"].clone(), net[2].weight.detach().clone()
    first, second = hidden(0, 2, 3, 5), hidden(1, 3)
    live.cut_all(net, first, iter([opt, copy_, carrier]))
    live.cut_all(net, second, [carrier, copy_, opt])
    assert carrier.cuts == [first, second]
    assert torch.equal(net[2].weight, trained[:, [2, 5]])
    assert torch.equal(copy_[2].weight, whole[2].weight[:, [2, 5]])
    assert torch.equal(opt.state[net[2].weight]["momentum_buffer"], momentum[:, [2, 5]])
    for module in (net, copy_):
        kept = attached(module).state.kept
        assert {name: {d: keep.tolist() for d, keep in dims.items()} for name, dims in kept.items()} == {
            "0.weight": {0: [2, 5]},
            "0.bias": {0: [2, 5]},
            "2.weight": {1: [2, 5]},
        }
        assert module[0].out_features == module[2].in_features == 2
    assert net(torch.randn(4, 3)).shape == (4, 2)
    with pytest.raises(ValueError, match="this Sequential has other parameters than the Sequential in training"):
        live.cut_all(net, hidden(0), [whole])
    set_attachment(copy_, None)
    with pytest.raises(ValueError, match="other parameters"):
        live.cut_all(net, hidden(0), [copy_])
    assert net[0].out_features == 2


def test_reads_and_sizes_are_remembered_and_reads_of_everything_forgotten() -> None:
    net = remembering()
    net.append(nn.InstanceNorm1d(9))
    live.cut_all(net, Cuts({"0.weight": {1: torch.tensor([0, 2])}}, {"0": torch.tensor([0, 2])}, {"3": 4}), [])
    state = attached(net).state
    assert state.reads["0"].tolist() == [0, 2]
    assert state.sizes["3"] == net[3].num_features == 4
    assert live.recall(TrainingState(), state).sizes == {"3": 4}
    live.cut_all(net, Cuts({"0.weight": {1: torch.tensor([1])}}, {"0": None}), [])
    assert "0" not in state.reads
    assert state.kept["0.weight"][1].tolist() == [2]
    assert type(net[0]) is nn.Linear


def test_recalled_cuts_lead_from_one_state_to_the_other() -> None:
    net = remembering()
    early = TrainingState(**attached(net).state.plain())
    live.cut_all(net, hidden(0, 2, 3, 5), [])
    middle = TrainingState(**attached(net).state.plain())
    live.cut_all(net, hidden(1, 3), [])
    late = TrainingState(**attached(net).state.plain())
    for now, then, keep in ((early, middle, [0, 2, 3, 5]), (early, late, [2, 5]), (middle, late, [1, 3])):
        cuts = live.recall(now, then)
        assert {name: {d: k.tolist() for d, k in dims.items()} for name, dims in cuts.kept.items()} == {
            "0.weight": {0: keep},
            "0.bias": {0: keep},
            "2.weight": {1: keep},
        }
        assert (cuts.reads, cuts.sizes) == ({}, {})
    for state in (early, middle, late):
        assert not live.recall(state, state)
    for now, then in ((middle, early), (late, middle), (late, early)):
        with pytest.raises(
            ValueError, match=r"shrunk further than this state \('(0.bias|0.weight|2.weight)' is smaller"
        ):
            live.recall(now, then)


def test_recalled_reads_are_those_of_the_other_state() -> None:
    kept, reads = torch.tensor([1]), torch.tensor([2])
    now = TrainingState(reads={"x": torch.tensor([0, 1])})
    then = TrainingState(kept={"x/y": {0: kept, 1: kept}}, reads={"y": reads}, tensors={"x": kept})
    cuts = live.recall(now, then)
    assert cuts.reads["x"] is None
    assert torch.equal(cuts.reads["y"], reads)
    assert set(cuts.reads) == {"x", "y"}
    assert {name: sorted(dims) for name, dims in cuts.kept.items()} == {"x/y": [0, 1]}


def test_what_is_left_is_put_back_into_its_place() -> None:
    kept = {0: torch.tensor([1, 3]), 2: torch.tensor([0])}
    small, whole = torch.arange(6.0, dtype=F64).view(2, 3, 1), torch.full((4, 3, 2), -1.0)
    found = live.put_back(small, whole, kept)
    assert torch.equal(found[[1, 3]][..., :1], small.float())
    assert found.dtype == torch.float32
    assert int((found == -1).sum()) == 24 - 6
    assert bool((whole == -1).all())
    assert torch.equal(live.put_back(whole + 2, whole, {}), whole + 2)
    assert live.put_back(torch.tensor(7), torch.tensor(0), {}) == 7


def test_a_dry_run_tells_what_goes_wrong_and_leaves_the_network_alone() -> None:
    net = remembering()
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, 0
    example = Inputs((torch.randn(4, 3),))
    assert live.dry_run(net, hidden(1, 2, 3, 4, 5), example) is None
    assert str(live.dry_run(net, hidden(0, 1, 2), example)).startswith("outputs differ by")
    torn = Cuts({"0.weight": {0: torch.tensor([1, 2])}, "0.bias": {0: torch.tensor([1, 2])}})
    assert str(live.dry_run(net, torn, example)).startswith("the smaller network fails with RuntimeError: mat1")
    assert net[0].weight.shape == (6, 3)


def test_of_several_steps_in_turns_the_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = remembering().eval(), list[Any]()

    def step_time(module: nn.Module, inputs: Inputs) -> float:
        width = module[0].out_features
        seen.append((width, module.training, inputs.shapes))
        torch.rand(1)
        return 10.0 * width + abs(len(seen) - 8.5)

    monkeypatch.setattr(live, "_step_time", step_time)
    example, random = Inputs((torch.randn(3, 3),)), torch.get_rng_state()
    assert live.step_times(net, hidden(0, 1), example, 5) == (60.5, 20.5)
    assert torch.equal(torch.get_rng_state(), random)
    assert seen[:4] == [(6, True, [(5, 3)]), (2, True, [(5, 3)])] * 2
    assert len(seen) == 24
    assert (net[0].out_features, net.training) == (6, False)
    seen.clear()
    live.step_times(net, hidden(0, 1), example, None)
    assert seen[0] == (6, True, [(3, 3)])


def test_a_step_is_forward_and_backward_of_every_floating_output(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10, 1000, 7))
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(ticks))
    fresh, reached = [], []

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2, dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> dict[str, Any]:
            fresh.append(self.a.weight.grad is None)
            one, other = self.a(x), self.b(x.bfloat16())
            for name, found in (("a", one), ("b", other)):
                found.register_hook(lambda grad, name=name: reached.append(name))
            return {"one": one, "other": other, "pick": one.argmax(1), "rows": len(x)}

    net = Several()
    assert live.step_times(net, Cuts(), Inputs((torch.randn(4, 3),)), None) == (7, 7)
    assert fresh == [True] * 24
    assert sorted(reached) == ["a"] * 24 + ["b"] * 24
    assert net.a.weight.grad is None


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_measured_in_the_layout_of_the_weights(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 2, 1)).to(memory_format=layout)
    seen: list[Inputs] = []
    monkeypatch.setattr(live, "_step_time", lambda module, inputs: seen.append(inputs) or 1.0)
    given = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 5)
    live.step_times(net, Cuts(), Inputs(given), 4)
    image, sequence = seen[0].tensors
    assert image.is_contiguous(memory_format=layout)
    assert not image.requires_grad
    assert image.shape == (4, 3, 5, 5)
    assert torch.equal(image[2:], given[0])
    assert sequence.is_contiguous()
