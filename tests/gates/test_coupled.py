"""Units that go together have one gate: it shows one sample everywhere, costs once, and its zero empties the network."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.analysis import wiring
from paring.core import bare_state, gated_layers, gates
from paring.cost import measure
from paring.gates import StochasticGate, expected, gate_of, sites, support
from paring.methods.expected_l2 import expected_l2_of
from paring.models import resnet20, wide_resnet
from paring.testing import difference, is_stock, same_state
from tests.gates.nets import COUPLED, DenseCat, GatedUnits, HalfTied, Inverted, PostAct, PreAct, Squeeze, batch, shaken

pytestmark = [BY_HAND, CUT_SHORT]

every = pytest.mark.parametrize("make", COUPLED)


def attached(
    make: type[nn.Module], method: pr.L0 | None = None, dtype: torch.dtype = torch.float64, steps: int | None = None
) -> tuple[Any, pr.Run, Tensor]:
    torch.manual_seed(0)
    net = shaken(make().to(dtype))
    x = batch(net, dtype=dtype)
    return net, pr.attach(net, method or pr.L0(price=1e-3, start="scratch"), x[:2], steps=steps), x


def stochastic(net: nn.Module) -> list[StochasticGate]:
    return [gate for _, _, gate in gates(net) if isinstance(gate, StochasticGate)]


def train(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = batch(net, dtype=next(net.parameters()).dtype)
        opt.zero_grad()
        (F.cross_entropy(net(x), x.flatten(1)[:, :2].argmax(1)) + run.penalty()).backward()
        run.step(opt)


# --- what the network computes ---------------------------------------------------------------------------------------


def by_hand(net: Any, x: Tensor, z: dict[str, Tensor]) -> Tensor:
    """PostAct and PreAct in eval mode with the stream and the inner units multiplied where they should be."""
    stream, inner = (z[name][:, None, None] for name in ("stream", "inner"))
    if isinstance(net, PostAct):
        x = F.relu(net.bn(net.stem(x)) * stream)
        y = net.bn_b(net.b(F.relu(net.bn_a(net.a(x)) * inner))) * stream
        return net.fc(F.relu(x + y).mean((2, 3)))  # type: ignore[no-any-return]
    x = net.stem(x)
    x = x + net.b(F.relu(net.bn_b(net.a(F.relu(net.bn_a(x) * stream))) * inner))
    return net.fc(F.relu(net.bn(x) * stream).mean((2, 3)))  # type: ignore[no-any-return]


def frozen_norms(net: nn.Module) -> nn.Module:
    """`net` in train mode, its norms in eval mode with their gates sampling."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = False
    return net


@pytest.mark.parametrize("make", [PostAct, PreAct])
def test_against_the_network_multiplied_by_hand(make: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net, run, x = attached(make)
    plain = make().double()
    plain.load_state_dict({k: v for k, v in bare_state(net).items() if "gate" not in k})
    plain.eval()
    found = {site.shape[0]: gate_of(net, site) for site in run.method.sites(net)}  # type: ignore[attr-defined]
    z = {"stream": found[6].value(), "inner": found[5].value()}
    assert torch.allclose(net.eval()(x), by_hand(plain, x, z), atol=1e-12)
    noise = {id(gate): torch.rand(gate.shape, dtype=torch.float64) for gate in found.values()}
    monkeypatch.setattr(StochasticGate, "_draw", lambda gate, shape: noise[id(gate)])
    z = {name: gate() for name, gate in (("stream", found[6]), ("inner", found[5]))}
    frozen_norms(net)
    z = {name: found[n].train()() for name, n in (("stream", 6), ("inner", 5))}
    wanted, got = by_hand(plain, x, z), net(x)
    assert torch.allclose(got, wanted, atol=1e-12)
    gate = found[6].log_alpha
    (a,), (b,) = torch.autograd.grad(got.square().sum(), gate), torch.autograd.grad(wanted.square().sum(), gate)
    assert torch.allclose(a, b, atol=1e-12)


@every
def test_everyone_sees_one_sample_until_the_step_is_over(make: type[nn.Module]) -> None:
    net, run, x = attached(make)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0))
    shared = [gate for gate in stochastic(net) if gate._shared]
    assert shared
    net.train()
    net(x)
    first = [gate().detach() for gate in shared]
    loss = net(x).sum() + net(x).square().sum()  # several passes, each with its own graph
    loss.backward()
    (net(x).sum() + run.penalty()).backward()
    assert all(torch.equal(a, gate()) for a, gate in zip(first, shared, strict=True))
    run.step(opt)
    net(x)
    assert not any(torch.equal(a, gate()) for a, gate in zip(first, shared, strict=True))


def test_a_sample_leaves_no_trace() -> None:
    net, run, x = attached(PostAct)
    before = {
        key: value.clone() for key, value in net.state_dict().items() if "running" not in key and "num" not in key
    }
    net.train()(x)
    gate = next(gate for gate in stochastic(net) if gate._shared)
    assert gate._noise is not None
    assert all(torch.equal(before[key], net.state_dict()[key]) for key in before)
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(gate._noise is None for gate in stochastic(copy_))
    net.load_state_dict(net.state_dict())
    assert gate._noise is None
    net(x)
    run.step(torch.optim.SGD(run.parameter_groups(lr=0.1)))
    assert gate._noise is None


def test_one_sample_per_example_is_the_same_everywhere() -> None:
    net, _, x = attached(PostAct, pr.L0(per_example=True, start="scratch"))
    frozen_norms(net)
    for gate in stochastic(net):
        gate.train()
    shared = next(gate for gate in stochastic(net) if gate._shared)
    seen: list[Tensor] = []
    for name in ("bn", "bn_b"):
        getattr(net, name).bias.data.fill_(1.0)
        getattr(net, name).weight.data.zero_()
        getattr(net, name).register_forward_hook(lambda _, __, out: seen.append(out))
    net(x)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0][:, :, 0, 0], shared(8))
    assert not torch.equal(shared(8)[0], shared(8)[1])
    assert shared(3).shape == (3, 6)


# --- what leaves the network -------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("seed", range(3))
def test_closed_groups_leave_exactly_and_cost_what_was_said(make: type[nn.Module], seed: int) -> None:
    net, run, x = attached(make)
    torch.manual_seed(seed)
    for gate in stochastic(net):
        gate.log_alpha.data.uniform_(-6, 4)
        gate.log_alpha.data[int(torch.randint(len(gate.log_alpha), ()))] = 3.0
        gate.log_alpha.data[gate.log_alpha.argmin()] = -5.0
    wanted, said = net.eval()(x), run.cost(support)
    small = run.finish()
    assert torch.allclose(small(x), wanted, atol=1e-10, rtol=1e-10)
    assert is_stock(small)
    assert run.report is not None
    assert not run.report.rolled_back
    real = measure(small, x[:1])
    assert (real.parameters, real.macs) == (int(said.parameters), int(said.macs))
    assert real.parameters < int(run.cost().parameters)


@pytest.mark.parametrize("build", [resnet20, lambda: wide_resnet(10, 1)])
def test_whole_residual_networks(build: Any) -> None:
    torch.manual_seed(0)
    net, x = shaken(build().double()), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    run = pr.attach(net, pr.L0(), x[:2])
    for gate in stochastic(net):
        gate.log_alpha.data.fill_(3.0)
        gate.log_alpha.data[1::2] = -5.0
    wanted, said = net.eval()(x), run.cost(support)
    small = run.finish()
    assert torch.allclose(small(x), wanted, atol=1e-10, rtol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == int(said.parameters)
    widths = {m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)}
    dense = {m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {width // 2 for width in dense}


@every
def test_the_price_is_the_size_of_what_one_gate_closes(make: type[nn.Module]) -> None:
    """The rows of the group in all layers and norms; what reads them is the readers' own."""
    net, run, x = attached(make)
    dense = measure(make().double(), x[:1])
    for site in run.method.sites(net):  # type: ignore[attr-defined]
        copy_, other, _ = attached(make)
        for gate in stochastic(copy_):
            gate.log_alpha.data.fill_(3.0)
        gate = gate_of(copy_, site)
        assert isinstance(gate, StochasticGate)
        gate.log_alpha.data[0] = -5.0
        real = measure(other.finish(), x[:1])
        assert dense.macs is not None
        assert real.macs is not None
        gone = (dense.parameters - real.parameters, dense.macs - real.macs)
        rows = {row.layers: row for row in pr.groups(make().double(), x[:2])}[site.layers]
        assert gone == (rows.parameters, rows.macs)
        assert 0 < site.size < gone[0]


def test_sizes_by_hand() -> None:
    def found(make: type[nn.Module]) -> dict[str, tuple[int, int]]:
        net = make()
        x = batch(net, 2)
        return {site.layer: (site.size, site.macs) for site in sites(net, wiring(net, x), ["units"])}

    assert found(PostAct) == {"stem": (27 + 2 + 45 + 2, 36 * (27 + 45)), "a": (54 + 2, 36 * 54)}
    assert found(PreAct) == {"stem": (27 + 45 + 2 + 2, 36 * (27 + 45)), "a": (54 + 2, 36 * 54)}
    assert found(DenseCat) == {
        "stem": (27 + 2 + 2 + 2, 36 * 27),
        "a": (36 + 2 + 2, 36 * 36),
        "b": (72 + 2, 36 * 72),
    }
    assert found(Inverted) == {"stem": (27 + 2 + 9 + 2, 36 * (27 + 9)), "expand": (6 + 2 + 9 + 2, 36 * (6 + 9))}
    assert found(Squeeze) == {"stem": (27 + 2 + 54 + 2 + 4, 36 * (27 + 54) + 3), "down": (7, 6)}
    assert found(GatedUnits) == {"w1": (6 + 6, 5 + 5)}
    assert found(HalfTied) == {"a": (5 + 5, 4 + 4), "b": (5 + 5, 4 + 4)}


@every
def test_expected_cost_is_the_mean_over_networks(make: type[nn.Module]) -> None:
    """Against sampled supports; 4 standard errors."""
    net, run, _ = attached(make)
    torch.manual_seed(1)
    for gate in stochastic(net):
        gate.log_alpha.data.uniform_(-2, 3)
    wanted = run.cost(expected)
    chance = {id(gate): gate.prob_open().detach() for gate in stochastic(net)}
    draws = []
    for _ in range(300):
        drawn = {key: (torch.rand(p.shape) < p).double() for key, p in chance.items()}
        cost = run.cost(lambda gate, drawn=drawn: drawn[id(gate)])  # type: ignore[misc]
        draws.append([float(cost.parameters), float(cost.macs)])
    found = torch.tensor(draws, dtype=torch.float64)
    error = (found.mean(0) - torch.stack([wanted.parameters, wanted.macs]).detach()).abs()
    assert bool((error < 4 * found.std(0) / 300**0.5 + 1e-9).all())


@every
@pytest.mark.parametrize("detach", [False, True])
def test_expected_l2_by_brute_force(make: type[nn.Module], detach: bool) -> None:
    """Every weight, bias, scale and shift of a tied unit counts while the unit's gate is open."""
    net, run, _ = attached(make)
    w = run.probe.wiring
    chance = torch.ones(w.units + 1, dtype=torch.float64)
    for site in run.method.sites(net):  # type: ignore[attr-defined]
        group = next(g for g in w.groups if g.layers == site.layers)
        chance[group.ids] = gate_of(net, site).prob_open().detach()
    modules, total = dict(net.named_modules()), 0.0
    for part in (*w.layers, *w.norms):
        for unit, label in enumerate(part.labels.tolist()):
            for leaf in ("weight", "bias"):
                held = getattr(modules[part.name], leaf, None)
                if held is not None:
                    total += 0.5 * float(chance[label]) * held[unit].square().sum().item()
    found = expected_l2_of(net, w, detach=detach)
    assert found.item() == pytest.approx(total, rel=1e-12)
    found.backward()
    assert all((gate.log_alpha.grad is None) == detach for gate in stochastic(net))


# --- training ----------------------------------------------------------------------------------------------------------


@every
def test_trains_and_finishes_to_the_same_function(make: type[nn.Module]) -> None:
    net, run, _ = attached(make, pr.L0(price=3e-3, gate_lr=30.0), steps=30)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    assert len([p for g in opt.param_groups for p in g["params"]]) == len(list(net.parameters()))
    start = [gate.log_alpha.detach().clone() for gate in stochastic(net)]
    train(net.train(), run, opt, 30)
    assert all(not torch.equal(a, gate.log_alpha) for a, gate in zip(start, stochastic(net), strict=True))
    x = batch(net, 50, torch.float64)
    assert difference(net, run.finish(), x) < 1e-10


@pytest.mark.parametrize("make", [PostAct, PreAct, DenseCat, Inverted])
@pytest.mark.parametrize("budget", [pr.Budget(params=0.5), pr.Budget(macs=0.4)])
def test_a_budget_is_met(make: type[nn.Module], budget: pr.Budget) -> None:
    net, run, x = attached(make, pr.L0(price=budget), steps=20)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    train(net.train(), run, opt, 20)
    small = run.finish()
    real, dense = measure(small, x[:1]), run.cost()
    for name, asked in budget.targets.items():
        share = getattr(real, name) / float(getattr(dense, name))
        assert asked * 0.6 < share <= asked
    assert difference(net, small, x) < 1e-10


@pytest.mark.parametrize("make", [PreAct, DenseCat])
@pytest.mark.parametrize("at", ["units", ("units", "weights:Conv2d")])
def test_resumes_bit_for_bit(make: type[nn.Module], at: str | tuple[str, ...]) -> None:
    def whole(stop: int | None) -> dict[str, Any]:
        net, run, _ = attached(make, pr.L0(price=1e-3, at=at), torch.float32)
        opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
        train(net.train(), run, opt, stop or 12)
        if stop is None:
            return net.state_dict()
        saved = copy.deepcopy((net.state_dict(), opt.state_dict(), run.state_dict(), torch.get_rng_state()))
        net, run, x = attached(make, pr.L0(price=1e-3, at=at), torch.float32)
        opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
        net.train()(x)  # a sample of before must not survive
        net.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])
        run.load_state_dict(saved[2])
        torch.set_rng_state(saved[3])
        train(net, run, opt, 12 - stop)
        return net.state_dict()

    assert same_state(whole(None), whole(5))


def test_copies_averages_and_autocast() -> None:
    net, run, x = attached(PreAct, dtype=torch.float32)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    average = AveragedModel(net)
    train(net.train(), run, opt, 3)
    average.update_parameters(net)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), average.module):
        assert len(stochastic(copy_)) == len(stochastic(net)) == 2
        small = run.finish(copy_)
        assert is_stock(small)
        assert difference(copy_, small, x) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("make", [PostAct, HalfTied])
def test_compiles(make: type[nn.Module]) -> None:
    torch._dynamo.reset()
    net, run, x = attached(make, dtype=torch.float32)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    net.train()
    shared = [gate for gate in stochastic(net) if gate._shared]
    seen = []
    for _ in range(3):
        opt.zero_grad()
        (compiled(x).square().sum() + run.penalty()).backward()
        seen.append([gate().detach() for gate in shared])
        run.step(opt)
    assert not any(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    frozen_norms(net)
    for gate in stochastic(net):
        gate.train(gate._shared)  # the others, which draw at every pass, show their estimate
    assert torch.allclose(compiled(x), net(x), atol=1e-5)
    net.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(x), net(x), atol=1e-5)


# --- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "wanted"),
    [
        ("units", [("stem", "b"), ("a",)]),
        ("units:stem", [("stem", "b")]),
        ("units:b", [("stem", "b")]),
        ("units:!b", [("a",)]),
        ("units:Conv2d|!stem", [("a",)]),
    ],
)
def test_a_selector_takes_or_leaves_whole_groups(at: str, wanted: list[tuple[str, ...]]) -> None:
    net = PostAct()
    assert [site.layers for site in sites(net, wiring(net, batch(net, 2)), [at])] == wanted


def test_a_norm_that_carries_no_gate_is_gone_round() -> None:
    net = PreAct()
    net.bn_a = nn.BatchNorm2d(6, affine=False)
    (stream, _) = sites(net, wiring(net, batch(net, 2)), ["units"])
    assert [mount.module for mount in stream.mounts] == ["stem", "b"]
    net.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, padding=1, bias=False))
    (only,) = sites(net, wiring(net, batch(net, 2)), ["units"])
    assert only.layers == ("a",)
    with pytest.raises(ValueError, match="layer 'b' cannot be gated: its weight is computed in the forward"):
        sites(net, wiring(net, batch(net, 2)), ["units:b"])


def test_rates_and_keep_probabilities_of_a_group() -> None:
    method = pr.L0(price=pr.Price(0.0, layers={"b": 2.0}), keep=(("b", 0.9),))
    net, run, _ = attached(PostAct, method)
    stream, inner = method.sites(net)
    assert method.keep_at(stream) == 0.9
    assert method.keep_at(inner) == 0.5
    chance = gate_of(net, stream).prob_open().sum()
    assert run.penalty().item() == pytest.approx(2.0 * stream.size * chance.item())


# --- the table ---------------------------------------------------------------------------------------------------------


def test_groups_are_shown_with_what_they_cost() -> None:
    net = PostAct()
    table = pr.groups(net, batch(net, 2))
    assert [row.layers for row in table] == [("stem", "b"), ("a",), ("fc",)]
    stream, inner, shown = table
    assert (stream.units, stream.parameters, stream.macs) == (6, 27 + 2 + 45 + 2 + 45 + 3, 36 * (27 + 45 + 45) + 3)
    assert (stream.gates, stream.coupling, stream.reason) == (("bn", "bn_b"), "coupled by a residual add", "")
    assert (inner.units, inner.parameters, inner.gates) == (5, 54 + 2 + 54, ("bn_a",))
    assert (shown.gateable, shown.reason, shown.gates) == (False, "network output", ())
    text = str(table).splitlines()
    assert text[0] == "PostAct"
    assert text[1].split() == ["group", "units", "parameters", "MACs", "gate", "acts", "in", "note"]
    assert " ".join(text[3].split()) == "stem, b 6 124 4,215 bn, bn_b coupled by a residual add"
    assert text[5].endswith("-             network output")
    assert table.to_dict()["groups"][0]["units"] == 6
    assert not list(gates(net))
    assert not list(gated_layers(net))
