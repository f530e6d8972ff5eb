"""Methods on the weights that recurrent layers and attention pack together: masks there like in any layer."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import CUT_SHORT
from paring import select
from paring.analysis import wiring
from paring.core import Method, gates, named_weight
from paring.cost import CostModel
from paring.cost.count import Openness
from paring.gates import MaskGate, live, openness, support
from paring.methods import AtInit
from paring.testing import difference, same_state

pytestmark = CUT_SHORT
F64 = torch.float64


class Recurrent(nn.Module):
    """Most weights are in a recurrent layer, read at its last step."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, width: int = 32) -> None:
        super().__init__()
        self.cells, self.fc = kind(8, width, batch_first=True), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.cells(x)[0][:, -1])
        return made


class Attentive(nn.Module):
    """Most weights are in an attention; others: it looks at the first half of the sequence."""

    def __init__(self, others: bool = False) -> None:
        super().__init__()
        self.att, self.fc, self.others = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4), others

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, : x.shape[1] // 2] if self.others else x
        made: Tensor = self.fc(self.att(x, seen, seen, need_weights=False)[0].mean(1))
        return made


X, Y = torch.randn(24, 6, 8), torch.randint(4, (24,))
NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attentive,
    "attention to others": lambda: Attentive(others=True),
}
METHODS: list[Method] = [
    pr.IMP(prunings=1, rate=0.9, allocation=select.Uniform()),
    pr.GMP(density=0.1),
    pr.RigL(density=0.1, every=2),
    pr.L0(price=pr.Budget(params=0.15), at="weights"),
    AtInit(score="magnitude", density=0.1, allocation=select.Uniform()),
    AtInit(score="snip", density=0.1),
    AtInit(score="grasp", density=0.1),
    AtInit(score="synflow", density=0.1, iterations=3),
    pr.methods.ContinuousSparsification(density=0.1, searches=1, ticket="none"),
]
nets = pytest.mark.parametrize("name", NETS)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in net.named_parameters() if p.dim() > 1 and "gate" not in name}


def train(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int) -> None:
    x, y = X.to(next(net.parameters()).dtype), Y
    for _ in range(steps):
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)


@nets
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_asked_density_is_that_of_the_whole_network(name: str, method: Method) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double()
    dense = sum(p.numel() for p in weights(net).values())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = pr.attach(net, method, X[:2].double(), steps=20, loss=lambda copy_: F.cross_entropy(copy_(X.double()), Y))
        opt = torch.optim.SGD(run.parameter_groups(0.1))
        while True:
            train(net, run, opt, 20)
            if not run.next_round(opt):
                break
        small = run.finish()
    assert not [one for one in told if "takes no gate" in str(one.message)]
    left = sum(int((p != 0).sum()) for p in weights(small).values())
    assert left <= 0.15 * dense
    masked = copy.deepcopy(net)
    run.method.finish(masked)
    assert difference(small, masked, X.double()) < 1e-10


@nets
def test_the_density_of_each_weight_is_the_asked_one(name: str) -> None:
    net = NETS[name]()
    run = pr.attach(net, pr.GMP(density=0.25), example=X[:2], steps=12)
    train(net, run, torch.optim.Adam(run.parameter_groups(lr=1e-2)), 12)
    found = {
        name: float((named_weight(net, name) * gate.support() != 0).float().mean()) for name, _, gate in gates(net)
    }
    assert len(found) == len(weights(net))
    assert all(abs(share - 0.25) < 0.01 for share in found.values()), found


def test_densities_of_erdos_renyi_count_rows_and_columns() -> None:
    net = Recurrent()
    pr.attach(net, AtInit(score="random", density=0.25, allocation=select.ErdosRenyi()), example=X[:2])
    shapes = {name: tuple(gate.shape) for name, _, gate in gates(net)}
    assert shapes == {"cells.weight_ih_l0": (128, 8), "cells.weight_hh_l0": (128, 32), "fc": (4, 32)}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    total, dense = sum(map(math.prod, shapes.values())), {"fc"}  # (4 + 32) / 128 of it would be more than all
    rest = 0.25 * total - sum(math.prod(shapes[name]) for name in dense)
    factor = rest / sum(sum(shapes[name]) for name in shapes if name not in dense)
    for name, _, gate in gates(net):
        expected = 1.0 if name in dense else factor * raw[name]
        assert float(gate.support().double().mean()) == pytest.approx(expected, abs=1 / math.prod(shapes[name]))


@nets
@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_scores_are_those_of_the_parameters(name: str, score: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double()
    naive = copy.deepcopy(net)

    def loss(copy_: Callable[..., Tensor]) -> Tensor:
        return F.cross_entropy(copy_(X.double()), Y)

    pr.attach(net, AtInit(score=score, density=0.3, temperature=1.0), example=X[:2].double(), loss=loss)  # type: ignore[arg-type]
    held = weights(naive)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(loss(naive), [*held.values()], create_graph=True)
        if score == "grasp":
            norm = sum((g * g.detach()).sum() for g in first)
            second = torch.autograd.grad(norm, [*held.values()])  # type: ignore[arg-type]
            found = [(w * h).detach() for w, h in zip(held.values(), second, strict=True)]
        else:
            found = [(w * g).abs().detach() for w, g in zip(held.values(), first, strict=True)]
    flat = torch.cat([one.flatten() for one in found])
    border = flat.sort(descending=True).values[round(0.3 * len(flat)) - 1]
    masks = {name: gate.mask for name, _, gate in gates(net) if isinstance(gate, MaskGate)}
    for parameter, value in zip(held, found, strict=True):
        assert torch.equal(masks[parameter.removesuffix(".weight")], value >= border), parameter


def test_weights_go_back_to_the_rewind_point() -> None:
    net = Recurrent()
    run = pr.attach(net, pr.IMP(prunings=2, rate=0.5, rewind=2), example=X[:2], steps=8)
    opt = torch.optim.SGD(run.parameter_groups(0.5))
    train(net, run, opt, 2)
    kept = {name: p.detach().clone() for name, p in weights(net).items()}
    train(net, run, opt, 6)
    assert run.next_round(opt)
    masks = {name: gate.mask for name, _, gate in gates(net) if isinstance(gate, MaskGate)}
    assert sum(int(mask.sum()) for mask in masks.values()) == round(sum(p.numel() for p in kept.values()) / 2)
    for name, value in kept.items():
        assert torch.equal(net.get_parameter(name), value * masks[name.removesuffix(".weight")])


@pytest.mark.parametrize("name", ["lstm", "attention"])
@pytest.mark.parametrize(
    "method", [pr.RigL(density=0.3, every=3), pr.L0(price=1e-3, at="weights")], ids=lambda m: type(m).__name__
)
def test_training_goes_on_bit_for_bit(name: str, method: Method) -> None:
    def begun() -> tuple[nn.Module, pr.Run, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = NETS[name]()
        run = pr.attach(net, method, example=X[:2], steps=20)
        return net, run, torch.optim.Adam(run.parameter_groups(lr=1e-2))

    net, run, opt = begun()
    train(net, run, opt, 8)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
    train(net, run, opt, 12)
    again, more, other = begun()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(again, more, other, 12)
    assert same_state(net.state_dict(), again.state_dict())
    assert difference(run.finish(), more.finish(), X) == 0


@nets
def test_groups_of_four_stay_groups_of_four(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double()
    run = pr.attach(net, pr.GMP(density=0.5, structure=select.NM(2, 4), every=2), example=X[:2].double(), steps=8)
    train(net, run, torch.optim.SGD(run.parameter_groups(0.1)), 8)
    with torch.no_grad():  # columns that nobody reads, in part of a group
        net.get_parameter("fc.weight")[:, 1:7] = 0
    small = run.finish()
    assert difference(small, net, X.double()) < 1e-12
    for weight in weights(small).values():
        open_ = (weight != 0).view(len(weight), -1, 4).sum(2)
        assert int(open_.max()) <= 2


@pytest.mark.parametrize("others", [False, True])
def test_costs_of_masked_projections_are_those_of_their_open_weights(others: bool) -> None:
    net = Attentive(others)
    found = wiring(net, X[:2])
    model = CostModel.of(net, found)
    masks = {name: (torch.rand(one.shape) < 0.4).double() for name, one in found.packed.items()}
    masks["fc"] = (torch.rand(4, 8) < 0.4).double()
    cost, dense = model(Openness(weights=masks)), model()
    assert float(dense.parameters) == sum(p.numel() for p in net.parameters())
    closed = {name: (1 - mask).sum(1) for name, mask in masks.items()}
    assert float(dense.parameters - cost.parameters) == sum(float(one.sum()) for one in closed.values())
    seen = 3 if others else 6
    lost = 6 * closed["att.in_proj_weight"][:8].sum() + seen * closed["att.in_proj_weight"][8:].sum()
    assert float(dense.macs - cost.macs) == float(lost + 6 * closed["att.out_proj"].sum() + closed["fc"].sum())


def test_costs_of_recurrent_weights_are_parameters() -> None:
    net = Recurrent()
    found = wiring(net, X[:2])
    model = CostModel.of(net, found)
    half = {"cells.weight_hh_l0": torch.full((128, 32), 0.5, dtype=F64)}
    assert float(model().parameters) == sum(p.numel() for p in net.parameters())
    assert float(model().parameters - model(Openness(weights=half)).parameters) == 128 * 32 / 2
    with pytest.raises(ValueError, match=r"has shape \(2, 2\) but the layer needs \(128, 32\)"):
        model(Openness(weights={"cells.weight_hh_l0": torch.ones(2, 2)}))


def test_gates_of_packed_weights_are_told_by_name() -> None:
    net = Attentive()
    run = pr.attach(net, AtInit(score="random", density=0.5), example=X[:2])
    given = openness(net, run.probe.wiring, support)
    assert set(given.weights) == {"att.in_proj_weight", "att.out_proj", "fc"}
    for name, _, gate in gates(net):
        if isinstance(gate, MaskGate):
            gate.choose(torch.ones(gate.shape))
            if name == "att.out_proj":
                gate.close(torch.arange(8).view(1, 8).expand(8, 8) < 3)  # three values that nobody reads
    left = live(openness(net, run.probe.wiring, support), run.probe.wiring)
    assert "att.in_proj" not in left.units, "rows of heads stay together"


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("weights:cells", {"cells.weight_ih_l0", "cells.weight_hh_l0"}),
        ("weights:LSTM", {"cells.weight_ih_l0", "cells.weight_hh_l0"}),
        ("weights:*.weight_hh*", {"cells.weight_hh_l0"}),
        ("weights:!cells.weight_ih_l0", {"cells.weight_hh_l0", "fc"}),
        ("weights:!LSTM", {"fc"}),
        (["weights:cells.weight_hh_l0", "weights:fc"], {"cells.weight_hh_l0", "fc"}),
    ],
)
def test_selectors_mean_layers_and_single_weights(at: str | list[str], expected: set[str]) -> None:
    net = Recurrent()
    pr.attach(net, pr.GMP(density=0.5, at=at), example=X[:2], steps=4)
    assert {name for name, _, _ in gates(net)} == expected


def test_a_weight_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer 'cells.weight_hh_l1' \(did you mean 'cells.weight_hh_l0'\?\)"):
        pr.attach(Recurrent(), pr.GMP(density=0.5, at="weights:cells.weight_hh_l1"), example=X[:2], steps=4)
    with pytest.raises(ValueError, match="no place for gates at 'units:cells'"):
        pr.attach(Recurrent(), pr.L0(price=1e-3, at="units:cells"), example=X[:2], steps=4)
