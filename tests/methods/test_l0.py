"""L0: prices, budgets, the L2 term, places, against numbers worked out by hand or by loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import attached, gates
from paring.cost import measure
from paring.gates import StochasticGate, expected, gate_of, support
from paring.methods.budget import _blocks
from paring.methods.l0 import expected_l2_of
from paring.models import build
from paring.testing import Chain, chain_batch, same_state

pytestmark = [BY_HAND, CUT_SHORT]

IMAGE = torch.zeros(2, 1, 28, 28)


def lenet(method: pr.Method, steps: int | None = None) -> tuple[nn.Module, pr.Run]:
    torch.manual_seed(0)
    net = build("lenet5_caffe", shape=(1, 28, 28), classes=10)
    return net, pr.attach(net, method, IMAGE, steps=steps)


def randomise(net: nn.Module, spread: float = 3.0) -> None:
    for _, _, gate in gates(net):
        gate.log_alpha.data.normal_(0, spread)


def test_papers_places_and_sizes_on_lenet5() -> None:
    method = pr.L0(price=1.0, at=("units:Conv2d", "inputs:Linear"))
    net, _ = lenet(method)
    found = {(s.layer, s.kind): (s.shape, s.size, s.macs) for s in method.sites(net)}
    assert found == {
        ("conv1", "units"): ((20,), 26, 25 * 576),
        ("conv2", "units"): ((50,), 501, 500 * 64),
        ("fc1", "inputs"): ((800,), 500, 500),
        ("fc2", "inputs"): ((500,), 10, 10),
    }


def test_price_is_lambda_times_group_size_times_chance() -> None:
    method = pr.L0(price=pr.Price(0.1, layers={"conv*": 2.0}), at=("units:Conv2d", "inputs:Linear"))
    net, run = lenet(method)
    randomise(net)
    wanted = 0.0
    for site in method.sites(net):
        rate = 2.0 if site.layer.startswith("conv") else 0.1
        for p in gate_of(net, site).prob_open().tolist():
            wanted += rate * site.size * p
    assert run.penalty().item() == pytest.approx(wanted, rel=1e-5)
    macs = pr.L0(price=pr.Price(1e-3, of="macs"), at="units:Conv2d")
    net, run = lenet(macs)
    assert run.penalty().item() == pytest.approx(
        1e-3 * sum(s.macs * gate_of(net, s).prob_open().sum().item() for s in macs.sites(net)), rel=1e-5
    )


def test_unit_gates_skip_the_last_layer_and_sit_behind_norms() -> None:
    net = Chain()
    run = pr.attach(net, pr.L0(price=1.0, at="units"), chain_batch(2)[0])
    assert [name for name, _, _ in gates(net)] == ["norm1", "conv2", "fc1"]
    assert {name: tuple(g.shape) for name, _, g in gates(net)} == {"norm1": (6,), "conv2": (8,), "fc1": (10,)}
    with pytest.raises(ValueError, match="layer 'fc2' cannot be gated: network output"):
        pr.attach(Chain(), pr.L0(at="units:fc2"), chain_batch(2)[0])
    assert run.cost().parameters == sum(p.numel() for p in Chain().parameters())


def test_gate_behind_a_norm_gets_gradient_in_front_of_it_none() -> None:
    """Why unit gates go behind the norm (facts of the paper's own WRN setting)."""
    net = Chain()
    pr.attach(net, pr.L0(price=0.0, at="units:conv1"), chain_batch(2)[0])
    x, y = chain_batch(64)
    gate = next(g for _, _, g in gates(net))
    F.cross_entropy(net(x), y).backward()
    behind = float(gate.log_alpha.grad.abs().mean())
    z = torch.full((6,), 0.5, requires_grad=True)
    plain = Chain()
    h = plain.conv1(x) * z.view(1, -1, 1, 1)
    h = plain.pool(torch.relu(plain.norm1(h)))
    F.cross_entropy(plain.fc2(torch.relu(plain.fc1(torch.relu(plain.conv2(h)).flatten(1)))), y).backward()
    assert float(z.grad.abs().mean()) < 1e-2 * behind


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ("outputs", "none of units, inputs, weights"),
        ("units:nothing", "this Chain has no layer 'nothing'; it has conv1, norm1, conv2"),
        ("units:Embedding", "no Linear, Conv or Embedding layer is selected"),
        (("units", "units:conv2"), "two places ask for a gate"),
    ],
)
def test_places_refused(at: str | tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pr.attach(Chain(), pr.L0(at=at), chain_batch(2)[0])


def test_selectors() -> None:
    def layers(at: str) -> list[str]:
        method = pr.L0(at=at)
        net = Chain()
        pr.attach(net, method, chain_batch(2)[0])
        return [site.layer for site in method.sites(net)]

    assert layers("weights") == ["conv1", "conv2", "fc1", "fc2"]
    assert layers("weights:Linear") == ["fc1", "fc2"]
    assert layers("weights:conv1|fc*") == ["conv1", "fc1", "fc2"]
    assert layers("weights:!conv1") == ["conv2", "fc1", "fc2"]
    assert layers("inputs:Conv2d|!conv1") == ["conv2"]


def test_shared_weights_are_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(self.b(torch.relu(self.a(x)))))
            return out

    with pytest.raises(ValueError, match="is tied to"):
        pr.attach(Tied(), pr.L0(at="weights:a"), torch.randn(2, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: pr.L0(price=-1.0),
        lambda: pr.L0(keep=1.0),
        lambda: pr.L0(keep=(("fc1", 0.0),)),
        lambda: pr.L0(gate_lr=-1),
        lambda: pr.L0(hold=1.0),
        lambda: pr.L0(kl=0.1),
        lambda: pr.L0(prior=2.0),
        lambda: pr.L0(price="cheap"),  # type: ignore[arg-type]
        lambda: pr.Price(1.0, of="bytes"),  # type: ignore[arg-type]
        lambda: pr.Price(float("nan")),
        lambda: pr.Budget(),
        lambda: pr.Budget(params=0.0),
        lambda: pr.Budget(macs=1.5),
        lambda: pr.Budget(params=0.5, ascent=0.0),
        lambda: pr.Budget(params=0.5, multiple_of=0),
    ],
)
def test_numbers_out_of_range(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):  # noqa: PT011  # each says what; the messages differ
        make()


@pytest.mark.parametrize("at", ["units", "inputs", "weights", ("units", "inputs:Linear")])
@pytest.mark.parametrize("detach", [False, True])
def test_l2_term_against_loops(at: str | tuple[str, ...], detach: bool) -> None:
    net = Chain().double()
    method = pr.L0(at=at)
    run = pr.attach(net, method, chain_batch(2, dtype=torch.float64)[0])
    wiring = run.probe.wiring
    randomise(net, 1.0)
    for p in net.parameters():
        p.data += 0.1
    chance: dict[tuple[str, str], Tensor] = {(name, kind): gate.prob_open().detach() for name, kind, gate in gates(net)}
    if ("norm1", "units") in chance:  # the gate behind the norm stands for the convolution too
        chance["conv1", "units"] = chance["norm1", "units"]
    wanted = 0.0
    for name, module in net.named_modules():
        for part in ("weight", "bias"):
            value = getattr(module, part, None)
            if not isinstance(value, Tensor):
                continue
            for index in itertools.product(*map(range, value.shape)):
                p = 1.0
                if (name, "units") in chance:
                    p *= float(chance[name, "units"][index[0]])
                if part == "weight" and (name, "inputs") in chance:
                    p *= float(chance[name, "inputs"][index[1]])
                if part == "weight" and (name, "weights") in chance:
                    p *= float(chance[name, "weights"][index])
                wanted += 0.5 * p * float(value.detach()[index]) ** 2
    found = expected_l2_of(net, wiring, detach=detach)
    assert found.item() == pytest.approx(wanted, rel=1e-10)
    found.backward()
    moved = [g.log_alpha.grad is not None for _, _, g in gates(net)]
    assert not any(moved) if detach else all(moved)


def test_prior_term_is_the_kl_of_every_gate() -> None:
    method = pr.L0(at="units", prior=0.2, kl=0.5)
    net = Chain().double()
    run = pr.attach(net, method, chain_batch(2, dtype=torch.float64)[0])
    randomise(net)
    prior = method.gate.logits(0.2)
    wanted = 0.5 * sum(method.gate.kl(g.log_alpha, prior).sum().item() for _, _, g in gates(net))
    assert run.penalty().item() == pytest.approx(wanted)


def test_clamp_and_initialisation() -> None:
    net = Chain()
    run = pr.attach(net, pr.L0(price=0.0, keep=(("conv1", 0.9), ("fc*", 0.2))), chain_batch(2)[0])
    start = {name: g.log_alpha.detach().clone() for name, _, g in gates(net)}
    for name, keep in (("norm1", 0.9), ("fc1", 0.2), ("conv2", 0.5)):
        assert torch.allclose(start[name], torch.logit(torch.tensor(keep)), atol=0.06)
        assert start[name].std().item() == pytest.approx(0.01, rel=0.8)
    opt = torch.optim.SGD(run.parameter_groups(lr=1.0), lr=1.0)
    for _, _, g in gates(net):
        g.log_alpha.data.fill_(40.0)
        g.log_alpha.data[0] = -40.0
    run.step(opt)
    for _, _, g in gates(net):
        assert g.log_alpha.min().item() == pytest.approx(-4.6052, abs=1e-3)
        assert g.log_alpha.max().item() == pytest.approx(4.6052, abs=1e-3)


def test_one_sample_per_minibatch_or_per_example() -> None:
    gate = StochasticGate(pr.gates.relax.HardConcrete(), (5,), per_example=True)
    assert gate(7).shape == (7, 5)
    assert gate(None).shape == (5,)
    assert gate.eval()(7).shape == (5,)
    one = StochasticGate(pr.gates.relax.HardConcrete(), (5,))
    assert one(7).shape == (5,)
    net = nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2))
    pr.attach(net, pr.L0(at="units", per_example=True), torch.randn(2, 3))
    out = net[0](torch.ones(4, 3))
    assert not torch.equal(out[0], out[1])
    net = nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2))
    pr.attach(net, pr.L0(at="units"), torch.randn(2, 3))
    out = net[0](torch.ones(4, 3))
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize("budget", [pr.Budget(params=0.05), pr.Budget(macs=0.25), pr.Budget(params=0.3, macs=0.2)])
@pytest.mark.parametrize("at", [("units:Conv2d", "inputs:Linear"), "units", "weights"])
def test_projection_lands_within_two_percent(budget: pr.Budget, at: str | tuple[str, ...]) -> None:
    method = pr.L0(price=budget, at=at)
    if at == "weights":  # a gate for each
        net = Chain(24)
        run = pr.attach(net, method, chain_batch(2)[0])
    else:
        net, run = lenet(method)
    randomise(net)
    method.finish(net)
    cost, dense = run.cost(support), run.cost()
    used = max(float(getattr(cost, name) / getattr(dense, name)) / asked for name, asked in budget.targets.items())
    assert used <= 1 + 1e-9
    assert used > 0.98
    for _, _, gate in gates(net):
        assert bool(gate.support().any())


def test_projection_keeps_the_likeliest_gates() -> None:
    method = pr.L0(price=pr.Budget(params=0.3), at="weights:fc1")
    net = nn.Sequential()
    net.fc1 = nn.Linear(20, 10)
    run = pr.attach(net, method, torch.randn(2, 20))
    gate = next(g for _, _, g in gates(net))
    gate.log_alpha.data.normal_()
    ranked = gate.log_alpha.detach().flatten().clone()
    method.finish(net)
    kept = gate.support().flatten()
    assert int(kept.sum()) == int(0.3 * 210) - 10  # the bias stays
    assert float(ranked[kept].min()) > float(ranked[~kept].max())
    assert float(run.cost(expected).parameters) == pytest.approx(63)


def naive_blocks(flat: Tensor, sizes: list[int], widths: list[int]) -> tuple[list[int], list[int], set[int]]:
    """Blocks of the likeliest entries of each place, by hand."""
    blocks, first, start = [], set(), 0
    for size, width in zip(sizes, widths, strict=True):
        place = sorted(range(start, start + size), key=lambda i: -float(flat[i]))
        first |= set(place[:width])
        blocks += [place[at : at + width] for at in range(0, size, width)]
        start += size

    def rank(block: list[int]) -> float:
        there = [float(flat[i]) for i in block if float(flat[i]) > -torch.inf]
        return sum(there) / len(there) if there else -torch.inf

    blocks.sort(key=lambda block: -rank(block))
    order = [i for block in blocks for i in block]
    return order, [0, *itertools.accumulate(map(len, blocks))], first


def test_blocks_of_gates_are_opened_by_their_mean() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sizes, widths = [20, 7, 16, 3], [8, 1, 4, 8]
        flat = torch.randn(sum(sizes), generator=generator)
        flat[torch.rand(len(flat), generator=generator) < 0.3] = -torch.inf  # gone already
        order, ends, first = _blocks(flat, sizes, widths, [True] * len(sizes))
        assert (order.tolist(), ends, set(first.nonzero().flatten().tolist())) == naive_blocks(flat, sizes, widths)


@pytest.mark.parametrize("macs", [0.2, 0.35, 0.6])
def test_projection_onto_round_widths(macs: float) -> None:
    method = pr.L0(price=pr.Budget(macs=macs, multiple_of=8), at="units")
    net, run = lenet(method)
    randomise(net)
    method.finish(net)
    for name, _, gate in gates(net):
        width = int(gate.support().sum())
        assert width >= 8
        assert width % 8 == 0 or width == gate.shape[0], name
    cost, dense = run.cost(support), run.cost()
    assert 0.8 * macs < float(cost.macs / dense.macs) <= macs + 1e-9


def test_budget_that_cannot_be_met() -> None:
    net = build("lenet5_caffe", shape=(1, 28, 28), classes=10)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"cannot be met: .* Ask for more \(about parameters 0\.00"):
        pr.attach(net, pr.L0(price=pr.Budget(params=1e-5), at="units"), IMAGE)
    assert not list(gates(net))
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="one block of 16 open gates in each of the 3 gated places"):
        pr.attach(net, pr.L0(price=pr.Budget(macs=0.1, multiple_of=16), at="units"), IMAGE)


def test_multiplier_rises_while_too_large_and_restarts_at_zero() -> None:
    method = pr.L0(price=pr.Budget(params=0.5, ascent=10.0), at="units", hold=0.0, gate_lr=10.0)
    net, run = lenet(method, steps=100)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.0), lr=0.0)
    state = attached(net).state.multipliers
    multipliers = []
    for _ in range(20):
        run.step(opt)
        if "units" in state:
            multipliers.append(float(state["units"]["parameters"]))
    assert multipliers[0] == pytest.approx(10 * 10 / 100 * 0.5, rel=1e-3)  # nothing is closed yet: excess 0.5
    assert multipliers[-1] == pytest.approx(2 * multipliers[0], rel=1e-3)
    assert run.penalty().item() > 0
    for _, _, gate in gates(net):
        gate.log_alpha.data.fill_(-4.0)
        gate.log_alpha.data[0] = 4.0
    for _ in range(10):
        run.step(opt)
    assert float(state["units"]["parameters"]) == 0


def test_hold_freezes_the_gates_and_ends_the_price() -> None:
    method = pr.L0(price=pr.Budget(params=0.4), at="units", hold=0.5)
    net = Chain()
    run = pr.attach(net, method, chain_batch(2)[0], steps=20)
    opt = torch.optim.Adam(run.parameter_groups(lr=0.01))
    for step in range(20):
        x, y = chain_batch()
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
        held = [g.frozen for _, _, g in gates(net)]
        assert all(held) if step >= 9 else not any(held)
        if step == 9:
            frozen = [g.log_alpha.detach().clone() for _, _, g in gates(net)]
    assert all(torch.equal(a, g.log_alpha) for a, (_, _, g) in zip(frozen, gates(net), strict=True))
    assert run.penalty().item() == 0
    net.train()
    a, b = net.fc1(torch.ones(1, 32)), net.fc1(torch.ones(1, 32))
    assert torch.equal(a, b)
    assert bool((~gates_of(net, "fc1").support() == gates_of(net, "fc1").permanently_closed()).all())


def gates_of(net: nn.Module, layer: str) -> StochasticGate:
    return next(g for name, _, g in gates(net) if name == layer)


def test_unit_closed_is_exactly_zero_and_leaves_the_network() -> None:
    net = Chain().double().eval()
    run = pr.attach(net, pr.L0(at="units"), chain_batch(2, dtype=torch.float64)[0])
    for name, _, gate in gates(net):
        gate.log_alpha.data.fill_(5.0)
        gate.log_alpha.data[: {"norm1": 2, "conv2": 3, "fc1": 4}[name]] = -5.0
    x = chain_batch(8, dtype=torch.float64)[0]
    wanted = net(x)
    small = run.finish()
    assert [tuple(p.shape) for n, p in small.named_parameters() if n.endswith("weight")] == [
        (4, 2, 3, 3),
        (4,),
        (5, 4, 3, 3),
        (6, 20),
        (3, 6),
    ]
    assert torch.allclose(small(x), wanted, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) == int(run.cost(support).parameters)


@pytest.mark.parametrize("at", ["units", "inputs", ("units:Conv2d", "inputs:Linear")])
@pytest.mark.parametrize("seed", range(3))
def test_support_and_actual_cost_agree_and_the_output_does_not_move(at: str | tuple[str, ...], seed: int) -> None:
    net, run = lenet(pr.L0(at=at))
    torch.manual_seed(seed)
    randomise(net)
    x = torch.rand(5, 1, 28, 28)
    wanted = net.eval()(x).detach()
    kept = run.cost(support)
    small = run.finish()
    real = measure(small, x[:1])
    assert (real.parameters, real.macs) == (int(kept.parameters), int(kept.macs))
    assert torch.allclose(small(x), wanted, atol=1e-5)
    everything = run.finish(drop_inputs=False)
    assert all(type(m).__module__.startswith("torch.nn") for m in everything.children())
    assert sum(p.numel() for p in everything.parameters()) >= real.parameters


class Functional(nn.Module):
    """Uses the weight of `a` without calling `a`, and that of `b` both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.a.weight, self.a.bias))
        x = torch.relu(self.c(torch.relu(self.b(x))))
        out: Tensor = self.out(F.linear(x, self.b.weight))
        return out


@pytest.mark.parametrize("kind", ["units", "inputs", "weights"])
@pytest.mark.parametrize(
    ("layer", "why"),
    [("a", "without calling the module"), ("b", "without calling the module|also used outside its layer")],
)
def test_layers_whose_weights_are_used_elsewhere_are_refused(kind: str, layer: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pr.attach(Functional(), pr.L0(at=f"{kind}:{layer}"), torch.randn(2, 4))


def test_finish_refuses_a_network_that_goes_around_its_gates() -> None:
    class Around(Chain):
        around = False

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + self.fc1.weight.sum() if self.around else y

    net = Around()
    run = pr.attach(net, pr.L0(at="units"), chain_batch(2)[0])
    net.around = True  # the capture while attaching could not see it
    with pytest.raises(RuntimeError, match="without calling that layer"):
        run.finish()


def test_failed_attach_leaves_the_weights_bit_for_bit() -> None:
    net = Chain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="has no layer 'nothing'"):
        pr.attach(net, pr.Stack(pr.L0(at="units:Conv2d"), pr.L0(at="units:nothing")), chain_batch(2)[0])
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="steps=0"):
        pr.attach(net, pr.L0(), chain_batch(2)[0], steps=0)
    pr.attach(net, pr.L0(), chain_batch(2)[0])


def test_patterns_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Price.layers names 'conv9', but the gated layers are"):
        pr.attach(Chain(), pr.L0(price=pr.Price(1.0, layers={"conv9": 2.0})), chain_batch(2)[0])
    with pytest.raises(ValueError, match="keep names 'fc9'"):
        pr.attach(Chain(), pr.L0(keep=(("fc9", 0.5),)), chain_batch(2)[0])


def test_an_earlier_state_lets_held_gates_move_again() -> None:
    net = Chain()
    pr.attach(net, pr.L0(), chain_batch(2)[0])
    early = {name: value.clone() for name, value in net.state_dict().items()}
    for _, _, gate in gates(net):
        gate.freeze()
    late = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(early)
    assert all(not g.frozen for _, _, g in gates(net))
    net.load_state_dict(late)
    assert all(g.frozen for _, _, g in gates(net))


@pytest.mark.parametrize("asked", [0.02, 0.1])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_budget_at_weights_is_met_by_what_is_left(asked: float, spread: float) -> None:
    """Dead units and unread units go as well, and the budget counts them so."""
    net = build("lenet_300_100", shape=(1, 28, 28), classes=10)
    run = pr.attach(net, pr.L0(price=pr.Budget(params=asked), at="weights"), IMAGE)
    randomise(net, spread)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(0.1)
    small = run.finish()
    assert measure(small, IMAGE[:1]).nonzeros == pytest.approx(asked * 266_610, rel=0.02)


def test_two_budgets_in_a_stack_count_the_network_and_not_each_others_gates() -> None:
    inner = pr.L0(price=pr.Budget(params=0.5), at="units")
    net = Chain()
    run = pr.attach(
        net, pr.Stack(pr.L0(price=pr.Budget(macs=0.9), at="weights:fc1"), inner), chain_batch(2)[0], steps=20
    )
    assert int(inner._notes(net).model().parameters) == sum(p.numel() for p in Chain().parameters())
    opt = torch.optim.Adam(run.parameter_groups(lr=0.01))
    for _ in range(10):
        run.step(opt)
    known = {places: set(costs) for places, costs in attached(net).state.multipliers.items()}
    assert known == {"weights:fc1": {"macs"}, "units": {"parameters"}}


@pytest.mark.slow
def test_gates_are_held_under_ddp_as_they_are_without(tmp_path: Path) -> None:
    def trained(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = Chain()
        run = pr.attach(net, pr.L0(price=pr.Budget(params=0.4), hold=0.5), chain_batch(2)[0], steps=8)
        forward, opt = wrap(net), torch.optim.Adam(run.parameter_groups(lr=1e-2))
        for step in range(8):
            x, y = chain_batch()
            opt.zero_grad(set_to_none=bool(step % 2))
            (F.cross_entropy(forward(x), y) + run.penalty()).backward()
            run.step(opt)
        assert all(gate.frozen for _, _, gate in gates(net))
        return net.state_dict()

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        alone, together = trained(lambda net: net), trained(DistributedDataParallel)
    finally:
        dist.destroy_process_group()
    assert same_state(alone, together)
