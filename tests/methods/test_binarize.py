"""Binarize: what it swaps and keeps, refusals, units that close behind signs, exact removal, files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.core import gates
from paring.gates import BinaryWeights, is_binary
from paring.hard import LearnedStep, SaturatedReLU, SaturatedSTE, Sign, SoftHinge, Staircase
from paring.methods import L0, Binarize, Budget, Shrink
from paring.models import build
from paring.testing import Chain, ModuleChain, chain_batch, difference

pytestmark = [BY_HAND, CUT_SHORT]


def attached(net: nn.Module, method: pr.Method, steps: int = 40) -> tuple[pr.Run, torch.optim.Optimizer]:
    x, _ = chain_batch(8, dtype=next(net.parameters()).dtype)
    run = pr.attach(net, method, x, steps=steps, epoch_steps=10)
    return run, torch.optim.Adam(run.parameter_groups(lr=1e-2))


def train(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = chain_batch(32, dtype=next(net.parameters()).dtype)
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)


def chain(seed: int = 0) -> ModuleChain:
    torch.manual_seed(seed)
    return ModuleChain(8).double()


def binary_layers(net: nn.Module) -> list[str]:
    return [name for name, _, gate in gates(net) if isinstance(gate, BinaryWeights)]


def test_activations_are_swapped_and_weights_seen_as_signs() -> None:
    net = chain()
    attached(net, Binarize(rule=SoftHinge()))
    assert [type(m) for m in (net.relu1, net.relu2, net.relu3)] == [Sign] * 3
    assert net.relu1.rule == SoftHinge()  # type: ignore[comparison-overlap,attr-defined]
    assert binary_layers(net) == ["conv2", "fc1"]
    for activations, kind in (
        ("staircase", Staircase),
        ("learned_step", LearnedStep),
        ("saturated_relu", SaturatedReLU),
    ):
        net = chain()
        attached(net, Binarize(activations, "none", steps=5))  # type: ignore[arg-type]
        assert type(net.relu2) is kind
        assert getattr(net.relu2, "steps", 5) == 5
        assert binary_layers(net) == []
    assert next(net.relu2.parameters(), net.fc1.weight).dtype == torch.float64


def test_first_and_last_layers_stay_real_unless_asked_for() -> None:
    cases = {
        Binarize(): ["conv2", "fc1"],
        Binarize(keep_first=False): ["conv1", "conv2", "fc1"],
        Binarize(keep_last=False): ["conv2", "fc1", "fc2"],
        Binarize(keep_first=False, keep_last=False): ["conv1", "conv2", "fc1", "fc2"],
        Binarize(at="weights:Conv2d"): ["conv2"],
        Binarize(at=("weights:conv1", "weights:fc1")): ["conv1", "fc1"],
    }
    for method, expected in cases.items():
        net = chain()
        attached(net, method)
        assert binary_layers(net) == expected, method
    with pytest.raises(ValueError, match="stay real; give keep_first=False"):
        attached(chain(), Binarize(at="weights:f*2"))


def test_one_module_of_several_places_is_swapped_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.body = nn.Sequential(nn.Linear(4, 4), self.act, nn.Linear(4, 4), self.act)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.body(x))
            return out

    net = Shared().eval()
    pr.attach(net, Binarize(weights="none"), torch.randn(3, 4))
    assert type(net.act) is Sign
    assert net.act is net.body[1] is net.body[3]
    assert not net.act.training


def test_names_choose_the_modules() -> None:
    net = chain()
    attached(net, Binarize(activations_at="relu1|*3"))
    assert [type(m) for m in (net.relu1, net.relu2, net.relu3)] == [Sign, nn.ReLU, Sign]
    with pytest.raises(ValueError, match="no module is called 'act'"):
        attached(chain(), Binarize(activations_at="act"))


def test_calls_that_are_no_modules_are_refused_by_name() -> None:
    class Half(ModuleChain):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(super().forward(x))

    for net, told in ((Chain(), "relu in its own forward"), (Half(), "gelu in its own forward")):
        with pytest.raises(ValueError, match=told) as caught:
            attached(net, Binarize())
        assert "self.act = nn.ReLU()" in str(caught.value)
        assert not any(isinstance(m, Sign) for m in net.modules())
        assert list(gates(net)) == []
    attached(Chain(), Binarize(activations="none"))


def test_a_refusal_later_in_the_stack_gives_the_activations_back() -> None:
    net = chain()
    before = [type(m) for m in net.modules()]
    with pytest.raises(ValueError, match="has no layer 'nothing'"):
        attached(net, pr.Stack(Binarize(), L0(price=1e-3, at="units:nothing")))
    assert [type(m) for m in net.modules()] == before
    assert type(net.relu1) is nn.ReLU
    attached(net, Binarize())


def test_settings_out_of_range_are_refused() -> None:
    for options, told in (
        ({"activations": "none", "weights": "none"}, "would change nothing"),
        ({"activations": "relu"}, "choose one of sign"),
        ({"weights": "xnor"}, "choose one of mean"),
        ({"steps": 0}, "at least 1"),
        ({"rule": "ste"}, "a rule is a value"),
    ):
        with pytest.raises(ValueError, match=told):
            Binarize(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("clip", [True, False])
def test_latent_weights_are_clipped(clip: bool) -> None:
    net = chain()
    run, _ = attached(net, Binarize(activations="none", clip=clip))
    opt = torch.optim.SGD(run.parameter_groups(lr=1.0), lr=1.0)
    with torch.no_grad():
        net.conv2.weight[0] = 3.0
        net.conv1.weight[0] = 3.0
    train(net, run, opt, 1)
    assert (float(net.conv2.weight.detach().abs().max()) <= 1) == clip
    assert float(net.conv1.weight.detach().abs().max()) > 1  # it is real


@pytest.mark.parametrize(
    ("activations", "weights", "live"),
    [
        ("sign", "mean", False),
        ("sign", "sign", False),
        ("sign", "sign", True),
        ("staircase", "mean", True),
        ("none", "sign", True),
        ("none", "mean", True),
    ],
)
@pytest.mark.slow
def test_binary_networks_lose_units_exactly(activations: str, weights: str, live: bool, tmp_path: Path) -> None:
    net = chain()
    binarize = Binarize(activations, weights, keep_first=False)  # type: ignore[arg-type]
    parts = [binarize, L0(price=Budget(params=0.35), at="units", hold=0.5, gate_lr=20.0)]
    if live:
        parts.append(Shrink(every=5, multiple_of=1, saving=0.01, measure=False))
    run, opt = attached(net, pr.Stack(*parts))
    train(net, run, opt, 40)
    x, _ = chain_batch(64, dtype=torch.float64)
    small = run.finish()
    gated = copy.deepcopy(net)
    run.method.finish(gated)
    assert difference(small, gated, x) < 1e-10
    whole = sum(p.numel() for p in chain().parameters())
    assert sum(p.numel() for p in small.parameters()) < 0.6 * whole
    for layer in (small.conv1, small.conv2, small.fc1):  # type: ignore[union-attr]
        assert is_binary(layer.weight), layer
    if live:
        done = any(record["done"] for record in run.shrinks)
        assert done == (activations != "sign")  # the constant behind a sign has to be folded, which waits for finish
    pr.save(small, tmp_path / "net.safetensors")
    again = pr.load(lambda: binarize.swapped(chain()), tmp_path / "net.safetensors")
    assert difference(small, again.double(), x) == 0


def test_a_rounding_error_that_crosses_a_jump_is_no_other_function() -> None:
    """z g and (w g) x + b g differ in the last bit; where that decides a sign, the comparison is made in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 2))
    run = pr.attach(net, pr.Stack(Binarize(weights="none"), L0(price=1e-3, at="units:0")), torch.randn(4, 3))
    with torch.no_grad():  # w x + b is a rounding error on the example
        x = run.probe.example.args[0]
        net[0].bias.copy_(-(net[0].weight @ x[0]))
    run.method.finish(net)
    gated = copy.deepcopy(net).eval()
    hidden = gated[0](x)
    folded = F.linear(
        x, gated[0].weight * gated[0].unit_gate.value()[:, None], gated[0].bias * gated[0].unit_gate.value()
    )
    assert bool(((hidden > 0) != (folded > 0)).any())
    small = run.finish(verify=False)
    assert type(small[1]) is Sign


def test_units_whose_signs_cancel_are_no_dead_units() -> None:
    """Weights ±1 that add up to zero compute something; a unit with no open gate does not."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    run = pr.attach(net, Binarize("none", "sign", keep_first=False), torch.randn(4, 4, dtype=torch.float64))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.copy_(torch.tensor([1.0, -1.0]).repeat(layer.weight.numel() // 2).view_as(layer.weight) * 0.3)
            layer.bias.fill_(0.5)
    run.method.finish(net)
    x = torch.randn(50, 4, dtype=torch.float64)
    before = net.eval()(x)
    small = run.finish()
    assert bool((small[0].weight.sum(1) == 0).all())
    assert small[0].out_features == 6
    assert bool((small[0].weight.abs() == 1).all())
    assert float((small(x) - before).detach().abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["convnet4_8", "convnet8"])
def test_networks_of_the_paper(name: str) -> None:
    net = build(name, shape=(3, 32, 32), classes=10)
    run = pr.attach(net, Binarize(), torch.randn(2, 3, 32, 32))
    convolutions = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    assert len(binary_layers(net)) == convolutions - 2
    assert sum(isinstance(m, Sign) for m in net.modules()) == convolutions - 1
    small = run.finish()
    assert is_binary(small.conv2.weight)
    assert not is_binary(small.conv1.weight)


@pytest.mark.parametrize("activations", ["sign", "staircase", "saturated_relu", "learned_step"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_brings_its_units(activations: str, packed: bool, tmp_path: Path) -> None:
    method = pr.Binarize(activations, "none", steps=2)  # type: ignore[arg-type]
    net, path = method.swapped(chain()), tmp_path / "net"
    (pr.pack if packed else pr.save)(net, path)
    read = pr.unpack if packed else pr.load
    x, _ = chain_batch(16, dtype=torch.float64)
    for factory in (chain, lambda: method.swapped(chain()), lambda: pr.Binarize("staircase", "none").swapped(chain())):
        again = read(factory, path)
        assert [type(module) for module in again.modules()] == [type(module) for module in net.modules()]
        assert difference(net, again.double(), x) == 0
    (pr.pack if packed else pr.save)(chain(), path)
    with pytest.raises(ValueError, match="no such unit"):
        read(lambda: method.swapped(chain()), path)


def test_a_file_of_unknown_units_is_refused(tmp_path: Path) -> None:
    net = Binarize("sign", "none").swapped(chain())
    net.get_submodule("relu1").saved_as = ("cube", 3)
    pr.save(net, tmp_path / "net")
    with pytest.raises(pr.FileError, match="'relu1' is a cube"):
        pr.load(chain, tmp_path / "net")


def test_binarize_attaches_in_one_call() -> None:
    one, other = chain(), chain()
    other.load_state_dict(one.state_dict())
    x, _ = chain_batch(4, dtype=torch.float64)
    run = pr.binarize(one, x, "staircase", "sign", steps=2, rule=SaturatedSTE())
    pr.attach(other, pr.Binarize("staircase", "sign", steps=2, rule=SaturatedSTE()), x)
    assert isinstance(run, pr.Run)
    assert torch.equal(one(x), other(x))
    assert any(isinstance(module, Staircase) for module in one.modules())


def test_layers_that_share_weights_are_named() -> None:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    net[4].weight = net[2].weight
    with pytest.warns(pr.ParingWarning, match="tied"), pytest.raises(ValueError, match="2, 4 share their weights"):
        pr.binarize(net, torch.randn(3, 4))
