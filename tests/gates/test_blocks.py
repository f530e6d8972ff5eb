"""Gates on residual branches: found in the graph, multiplied at their last layers, counted with all that goes with them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from gates.nets import PostAct, PreAct
from marks import BY_HAND, CUT_SHORT
from paring.analysis import wiring
from paring.core import SharedGate, gates
from paring.core.zeros import Zeros
from paring.cost import CostModel, measure
from paring.cost.count import Openness
from paring.files import load, save
from paring.gates import MaskGate, StochasticGate, live, openness, put_gate, sites, support
from paring.methods.expected_l2 import expected_l2_of
from paring.models import resnet20
from paring.removal import compact
from paring.testing import difference

pytestmark = [CUT_SHORT, BY_HAND]
F64 = torch.float64
SEQUENCE, IMAGE = torch.randn(4, 5, 6, dtype=F64), torch.randn(4, 3, 8, 8, dtype=F64)


class Heads(nn.Module):
    """Attention of one's own, with a head of queries, keys and values each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.view(*one.shape[:2], 2, -1).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        made: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return made


class Torch(nn.Module):
    """Attention of torch."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return made


class PreNorm(nn.Module):
    """One block of a transformer; parallel: both branches read the same."""

    def __init__(self, attention: type[nn.Module], parallel: bool = False) -> None:
        super().__init__()
        self.before, self.attention, self.norm = nn.LayerNorm(8), attention(8), nn.LayerNorm(8)
        self.up, self.down, self.parallel = nn.Linear(8, 12), nn.Linear(12, 8), parallel

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attention(self.before(x))
        made: Tensor = y + self.down(F.gelu(self.up(self.norm(x if self.parallel else y))))
        return made


def transformer(attention: type[nn.Module], parallel: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), PreNorm(attention, parallel), PreNorm(attention, parallel), nn.LayerNorm(8), nn.Linear(8, 3)
    )


class Small(nn.Module):
    """Residual blocks of a ResNet, one of them with a projection beside it."""

    def __init__(self) -> None:
        super().__init__()
        net = resnet20(shape=(3, 8, 8), classes=3)
        self.stem = nn.Sequential(net.conv1, net.bn1, nn.ReLU())
        self.first, self.wide, self.last = net.stage1[0], net.stage2[0], net.stage2[1]
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.last(self.wide(self.first(self.stem(x)))).mean((2, 3)))
        return made


class Behind(nn.Module):
    """A branch that ends in a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.norm, self.fc = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made: Tensor = self.fc(x + self.norm(self.up(x).relu()))
        return made


class Halves(nn.Module):
    """The branch is a sum of two, one of them in groups, behind a gain and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain, self.drop = nn.Parameter(torch.rand(8)), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.drop((self.left(x) - self.right(x.relu())) * self.gain)
        y += x
        x = y
        made: Tensor = self.fc(x)
        return made


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[tuple[str, ...]]]] = {
    "attention": (
        lambda: transformer(Heads),
        SEQUENCE,
        [("1.attention.out",), ("1.down",), ("2.attention.out",), ("2.down",)],
    ),
    "attention of torch": (
        lambda: transformer(Torch),
        SEQUENCE,
        [("1.attention.attention.out_proj",), ("1.down",), ("2.attention.attention.out_proj",), ("2.down",)],
    ),
    "parallel": (
        lambda: transformer(Heads, parallel=True),
        SEQUENCE,
        [("1.attention.out",), ("1.down",), ("2.attention.out",), ("2.down",)],
    ),
    "encoder layer": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True)
        ),
        SEQUENCE,
        [("1.self_attn.out_proj",), ("1.linear2",)],
    ),
    "resnet": (Small, IMAGE, [("first.bn2",), ("last.bn2",)]),
    "post-activation": (PostAct, IMAGE, [("bn_b",)]),
    "pre-activation": (PreAct, IMAGE, [("b",)]),
    "a norm at the end": (Behind, SEQUENCE, [("norm",)]),
    "two layers": (Halves, SEQUENCE, [("left", "right")]),
}
every = pytest.mark.parametrize("name", NETS)


def begun(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, x, _ = NETS[name]
    net = make().double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return net.eval(), x


def scaled_by_hand(net: nn.Module, names: tuple[str, ...], z: float) -> None:
    with torch.no_grad():
        for parameter in (p for name in names for p in net.get_submodule(name).parameters()):
            parameter.mul_(z)


@every
def test_branches_are_found_and_their_gates_multiply_the_last_layers(name: str) -> None:
    net, x = begun(name)
    found = wiring(net, x)
    assert [branch.carriers for branch in found.branches] == NETS[name][2]
    chosen = sites(net, found, "blocks")
    assert [site.layer for site in chosen] == [branch.name for branch in found.branches]
    naive, values = copy.deepcopy(net), torch.rand(len(chosen))
    for site, value, branch in zip(chosen, values, found.branches, strict=True):
        gate = MaskGate((1,), factor=float(value))
        put_gate(dict(net.named_modules()), site, gate)
        scaled_by_hand(naive, branch.carriers, float(value))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert difference_of(net, naive, x) < 1e-12
    told = openness(net, found, lambda gate: gate.value().detach()).blocks
    assert {name: float(value) for name, value in told.items()} == pytest.approx(
        {site.layer: float(value) for site, value in zip(chosen, values, strict=True)}
    )
    run = copy.deepcopy(net)
    pr.core.release(run)
    assert difference_of(run, naive, x) < 1e-12
    assert all(type(a) is type(b) for a, b in zip(run.modules(), naive.modules(), strict=True))


def difference_of(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    expected = other(x).detach()
    return float((net(x).detach() - expected).abs().max() / expected.abs().max())


@every
def test_costs_are_those_of_the_network_that_is_left(name: str) -> None:
    net, x = begun(name)
    net = net.train() if name == "encoder layer" else net
    found = wiring(net, x)
    model = CostModel.of(net, found)
    assert float(model().parameters) == sum(p.numel() for p in net.parameters())
    for closed in itertools.product((0.0, 1.0), repeat=len(found.branches)):
        given = {branch.name: torch.tensor([one]) for branch, one in zip(found.branches, closed, strict=True)}
        cost = model(live(Openness(blocks=given), found))
        small = copy.deepcopy(net)
        for branch, one in zip(found.branches, closed, strict=True):
            scaled_by_hand(small, branch.carriers, one)
        left, report = compact(small, x)
        assert difference(left, small, x) < 1e-12
        seen = measure(left, x)
        assert float(cost.parameters) == seen.parameters, (closed, report)
        assert float(cost.macs) == seen.macs, (closed, report)


def test_chances_multiply() -> None:
    net, x = begun("attention")
    found = wiring(net, x)
    model = CostModel.of(net, found)
    chances = torch.rand(4, dtype=F64, requires_grad=True)
    names = [branch.name for branch in found.branches]
    cost = model(Openness(blocks=dict(zip(names, chances.split(1), strict=True))))
    expected = torch.zeros((), dtype=F64)
    for closed in itertools.product((0.0, 1.0), repeat=4):
        chance = torch.stack([c if one else 1 - c for c, one in zip(chances, closed, strict=True)]).prod()
        given = {name: torch.tensor([one]) for name, one in zip(names, closed, strict=True)}
        expected = expected + chance * float(model(Openness(blocks=given)).macs)
    assert float(cost.macs.detach()) == pytest.approx(float(expected.detach()))
    (slope,) = torch.autograd.grad(cost.macs, chances)
    (other,) = torch.autograd.grad(expected, chances)
    assert torch.allclose(slope.double(), other)
    with pytest.raises(ValueError, match=r"one chance for a branch, of 1\.attention\.out"):
        model(Openness(blocks={"1.up": torch.ones(1)}))


@pytest.mark.parametrize("name", ["attention", "attention of torch", "resnet", "two layers"])
def test_a_budget_closes_whole_branches(name: str, tmp_path: Path) -> None:
    net, x = begun(name)
    dense = measure(net, x)
    run = pr.attach(net.train(), pr.L0(price=pr.Budget(macs=0.75), at="blocks", start="trained"), x, steps=20)
    opt = torch.optim.SGD(run.parameter_groups(1e-2))
    for _ in range(20):
        opt.zero_grad()
        (net(x).pow(2).mean() + run.penalty()).backward()
        run.step(opt)
    told = run.cost(support)
    small = run.finish()
    assert difference(small, net, x) < 1e-10
    seen = measure(small, x)
    assert dense.macs is not None
    assert seen.macs is not None
    assert (seen.parameters, seen.macs) == (float(told.parameters), float(told.macs))
    assert seen.macs <= 0.75 * dense.macs
    save(small, tmp_path / "small.safetensors")
    again = load(lambda: NETS[name][0]().double().eval(), tmp_path / "small.safetensors")
    assert difference(small, again, x) < 1e-12


@pytest.mark.filterwarnings("ignore:more went than asked:paring.ParingWarning")
def test_prune_drops_branches() -> None:
    net, x = begun("attention of torch")
    batches = [(x, torch.randn(4, 5, 3, dtype=F64)) for _ in range(2)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    dense = sum(p.numel() for p in net.parameters())
    for at in ("blocks", ["units", "blocks"]):
        small, _ = pr.prune(net, batches, loss, to=pr.Budget(params=0.6), at=at, epochs=0, teacher=None)
        assert small(x).shape == (4, 5, 3)
        assert sum(p.numel() for p in small.parameters()) <= 0.6 * dense
        assert at != "blocks" or any(isinstance(module, Zeros) for module in small.modules())


@pytest.mark.parametrize("name", ["attention", "resnet", "two layers"])
def test_examples_may_have_samples_of_their_own(name: str) -> None:
    net, x = begun(name)
    run = pr.attach(net.train(), pr.L0(price=1e-3, at="blocks", per_example=True, start="scratch"), x)
    torch.manual_seed(1)
    together = net(x)
    held = {one: gate for one, _, gate in gates(net) if isinstance(gate, StochasticGate)}
    assert len(held) == len(NETS[name][2])
    shown: dict[str, Tensor] = {}
    torch.manual_seed(1)
    for one, gate in held.items():
        gate.renew()
        gate.register_forward_hook(lambda _m, _i, out, one=one: shown.update({one: out.detach()}) or None)
    if name != "two layers":  # a dropout draws, too
        assert torch.equal(net(x), together)
    net(x)
    assert all(value.shape == (4, 1) for value in shown.values())
    assert run.penalty() is not None


def test_the_l2_term_counts_what_is_in_a_branch_while_it_is_open() -> None:
    net, x = begun("attention of torch")
    run = pr.attach(net, pr.L0(price=1e-3, at="blocks", l2=1.0), x)
    found = run.probe.wiring
    chance = openness(net, found, lambda gate: gate.prob_open()).blocks
    expected = torch.zeros((), dtype=F64)
    for name, parameter in net.named_parameters():
        if "gate" not in name:
            held = [chance[branch.name] for branch in found.branches if name in branch.members]
            assert len(held) == (1 if name.startswith(("1.", "2.")) else 0)
            expected = expected + parameter.pow(2).sum() * (held[0].sum() if held else 1.0)
    assert torch.allclose(expected_l2_of(net, found), 0.5 * expected)


def test_selectors_mean_carriers_and_the_module_of_the_sum() -> None:
    net, x = begun("attention")
    found = wiring(net, x)

    def at(place: str | list[str]) -> list[str]:
        return [site.layer for site in sites(net, found, place)]

    assert at("blocks:1") == ["1.attention.out", "1.down"]
    assert at("blocks:!1") == ["2.attention.out", "2.down"]
    assert at("blocks:*.down") == ["1.down", "2.down"]
    assert at(["blocks:1.down", "units:2.up"]) == ["1.down", "2.up"]
    with pytest.raises(ValueError, match="no residual branch is selected"):
        sites(net, found, "blocks:4")
    with pytest.raises(ValueError, match="takes places at 'weights', not 'blocks'"):
        pr.GMP(density=0.5, at="blocks")


class Odd(nn.Module):
    """Sums that are no residual branches, or whose branch no gate can close."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.fc = how, nn.Linear(6, 8), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.bare = nn.LayerNorm(8, elementwise_affine=False)
        self.place = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "twice":
            x = x + self.a(x).relu()
            x = x + self.a(x)
        elif self.how == "sigmoid":
            x = x + self.a(x).sigmoid()
        elif self.how == "norm":
            x = x + self.bare(self.a(x))
        elif self.how == "own norm":
            y = self.a(x)
            x = x + y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * self.place
        elif self.how == "read":
            y = self.a(x)
            x = (x + y) * y.mean()
        elif self.how == "constant":
            x = x + (self.a(x) + self.place)
        elif self.how == "position":
            x = x + self.place
        elif self.how == "two":
            x = self.a(x) + self.b(x)
        made: Tensor = self.fc(x)
        return made


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("twice", "no residual branch"),
        ("sigmoid", "it ends in sigmoid"),
        ("norm", "has no scale and shift"),
        ("own norm", "would undo what a gate in front of it multiplies"),
        ("constant", "read elsewhere|ends in"),
        ("read", "no residual branch"),
        ("position", "no residual branch"),
        ("two", "no residual branch"),
    ],
)
def test_what_no_gate_can_close_is_refused_with_the_reason(how: str, reason: str) -> None:
    net = Odd(how)
    with pytest.raises(ValueError, match=reason):
        sites(net, wiring(net, SEQUENCE.float()), "blocks")


def test_one_gate_acts_in_both_layers() -> None:
    net, x = begun("two layers")
    pr.attach(net, pr.L0(price=1e-3, at="blocks"), x)
    assert isinstance(net.left.block_gate, SharedGate)
    assert [name for name, kind, _ in gates(net) if kind == "blocks"] == ["left"]
