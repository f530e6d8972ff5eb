"""Methods that set masks: their schedules, what they drop and grow, and when the optimizer may move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import paring as pr
from marks import CUT_SHORT
from paring import select
from paring.core import bare_state, gates
from paring.gates import MaskGate
from paring.methods import DNW, GMP, SET, AtInit, Masked, RigL, Slimming
from paring.testing import Chain, chain_batch

pytestmark = CUT_SHORT

BATCH = chain_batch(40, dtype=torch.float64)


def loss(net: Any) -> Tensor:
    return F.cross_entropy(net(BATCH[0]), BATCH[1])


def attached(method: pr.Method, steps: int | None = 40) -> tuple[Chain, pr.Run, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Chain().double()
    run = pr.attach(net, method, BATCH[0][:2], steps=steps, epoch_steps=10, loss=loss)
    return net, run, torch.optim.SGD(run.parameter_groups(lr=0.05, weight_decay=1e-2), lr=0.05, momentum=0.9)


def backward(net: nn.Module, opt: torch.optim.Optimizer) -> None:
    opt.zero_grad()
    loss(net).backward()


def step(net: nn.Module, run: pr.Run, opt: torch.optim.Optimizer) -> None:
    backward(net, opt)
    run.step(opt)


def masks(net: nn.Module) -> dict[str, MaskGate]:
    return {name: gate for name, _, gate in gates(net) if isinstance(gate, MaskGate)}


def weight(net: nn.Module, name: str) -> nn.Parameter:
    found = net.get_submodule(name).weight
    assert isinstance(found, nn.Parameter)
    return found


def open_share(net: nn.Module) -> float:
    found = [gate.mask for gate in masks(net).values()]
    return sum(int(mask.sum()) for mask in found) / sum(mask.numel() for mask in found)


def test_gmp_follows_its_schedule() -> None:
    net, run, opt = attached(GMP(density=0.1, every=4, ramp=(0.1, 0.7)))
    for done in range(1, 41):
        step(net, run, opt)
        looked = 28 if done >= 28 else done - done % 4
        part = min(max((looked / 40 - 0.1) / 0.6, 0.0), 1.0)
        sparsity = 0.9 - 0.9 * (1 - part) ** 3
        for name, gate in masks(net).items():
            assert int(gate.mask.sum()) == round((1 - sparsity) * gate.mask.numel()), (name, done)
        assert all(gate.fixed == (done >= 28) for gate in masks(net).values())


def test_gmp_lets_weights_come_back_with_the_value_they_had() -> None:
    """Shrink every open weight of a layer below what was closed: the next pruning opens those again."""
    net, run, opt = attached(GMP(density=0.5, every=2, ramp=(0.0, 1.0)))
    for _ in range(10):
        step(net, run, opt)
    gate, layer = masks(net)["fc1"], weight(net, "fc1")
    closed, before = ~gate.mask.clone(), gate.latent(layer.detach()).clone()
    assert int(closed.sum()) > 20
    with torch.no_grad():
        layer.mul_(1e-6)
    step(net, run, opt)
    step(net, run, opt)
    back = gate.mask & closed
    assert int(back.sum()) > 10
    assert torch.equal(layer.detach()[back], before[back])
    assert bool((layer.detach()[~gate.mask] == 0).all())


def test_gmp_without_recovery_never_reopens() -> None:
    net, run, opt = attached(GMP(density=0.2, every=2, recover=False))
    last = {name: gate.mask.clone() for name, gate in masks(net).items()}
    for _ in range(40):
        step(net, run, opt)
        for name, gate in masks(net).items():
            assert bool((~gate.mask | last[name]).all())
            last[name] = gate.mask.clone()
    assert open_share(net) == pytest.approx(0.2, abs=0.01)


def test_a_transplanted_allocation_is_kept() -> None:
    given = select.Given((("conv*", 0.5), ("fc1", 0.05), ("fc2", 1.0)))
    net, run, opt = attached(GMP(density=0.01, every=5, allocation=given))
    for _ in range(40):
        step(net, run, opt)
    for name, gate in masks(net).items():
        expected = {"fc1": 0.05, "fc2": 1.0}.get(name, 0.5)
        assert int(gate.mask.sum()) == round(expected * gate.mask.numel())


@pytest.mark.parametrize(
    "structure", [select.Units(), select.Blocks(2, 2), select.NM(1, 2)], ids=lambda one: type(one).__name__
)
def test_structures(structure: select.Structure) -> None:
    net, run, opt = attached(GMP(density=0.5, every=5, structure=structure, at="weights:!fc2"))
    for _ in range(30):
        step(net, run, opt)
    mask = masks(net)["fc1"].mask
    if isinstance(structure, select.Units):
        assert bool(((mask.sum(1) == 0) | (mask.sum(1) == mask.shape[1])).all())
    elif isinstance(structure, select.NM):
        assert bool((mask.view(10, -1, 2).sum(2) == 1).all())
    else:
        blocks = mask.view(5, 2, -1, 2).sum((1, 3))
        assert bool(((blocks == 0) | (blocks == 4)).all())


def by_hand(mask: Tensor, magnitude: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """The exchange with sorted lists."""
    flat, mags, grow = mask.flatten().tolist(), magnitude.flatten().tolist(), growth.flatten().tolist()
    opened = [i for i, one in enumerate(flat) if one]
    count = int(fraction * len(opened) + 1e-6)
    kept = set(sorted(opened, key=lambda i: (-mags[i], i))[: len(opened) - count])
    new = sorted((i for i in range(len(flat)) if i not in kept), key=lambda i: (-grow[i], i))[:count]
    return torch.tensor([i in kept or i in new for i in range(len(flat))]).view(mask.shape)


@pytest.mark.parametrize("allocation", [select.ErdosRenyi(), select.Uniform(first_dense=True)])
def test_rigl_exchanges_by_gradient_and_skips_the_step(allocation: select.Allocation) -> None:
    net, run, opt = attached(RigL(density=0.3, every=5, allocation=allocation))
    start = {name: int(gate.mask.sum()) for name, gate in masks(net).items()}
    wanted = allocation.counts({name: gate.mask for name, gate in masks(net).items()}, 0.3)
    assert start == wanted
    for done in range(40):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        buffers = {p: opt.state[p]["momentum_buffer"].clone() for p in opt.state}
        held = {name: gate.mask.clone() for name, gate in masks(net).items()}
        exchanging = done > 0 and done % 5 == 0 and done < 30
        assert all(gate.dense == exchanging for gate in masks(net).values())
        backward(net, opt)
        grads = {name: weight(net, name).grad for name in held}
        run.step(opt)
        for name, gate in masks(net).items():
            grad = grads[name]
            assert grad is not None
            assert int(gate.mask.sum()) == start[name]
            if not exchanging:
                assert torch.equal(gate.mask, held[name])
                assert bool((grad[~held[name]] == 0).all()), "closed weights cost a gradient"
                continue
            fraction = 0.15 * (1 + math.cos(math.pi * done / 30))
            magnitude = before[f"{name}.weight"].abs()
            assert torch.equal(gate.mask, by_hand(held[name], magnitude, grad.abs(), fraction)), (name, done)
            fresh = gate.mask & ~held[name]
            assert bool((weight(net, name)[fresh] == 0).all())
            assert bool((opt.state[weight(net, name)]["momentum_buffer"][fresh] == 0).all())
        if exchanging:
            for name, p in net.named_parameters():
                layer = name.removesuffix(".weight")
                old = before[name] * masks(net)[layer].mask if layer in held else before[name]
                assert torch.equal(p, old), f"{name} moved in a step that only exchanges"
            for p, buffer in buffers.items():
                assert torch.equal(
                    opt.state[p]["momentum_buffer"] != 0, (buffer != 0) & (opt.state[p]["momentum_buffer"] != 0)
                )
        if done == 5:  # later exchanges are small, and may give back what they took
            assert any(not torch.equal(gate.mask, held[name]) for name, gate in masks(net).items())


def test_rigl_gradients_of_closed_weights_are_those_of_the_dense_network() -> None:
    net, run, opt = attached(RigL(density=0.3, every=3))
    for _ in range(3):
        step(net, run, opt)
    dense = Chain().double()
    dense.load_state_dict({k: v for k, v in bare_state(net).items() if "gate" not in k})
    backward(net, opt)
    loss(dense).backward()
    for name in masks(net):
        assert torch.allclose(weight(net, name).grad, weight(dense, name).grad, atol=1e-12)  # type: ignore[arg-type]


def test_set_regrows_at_random_and_the_same_after_a_resume() -> None:
    def run_it() -> list[dict[str, Tensor]]:
        net, run, opt = attached(SET(density=0.4, every=4, seed=3))
        seen = []
        for _ in range(12):
            step(net, run, opt)
            seen.append({name: gate.mask.clone() for name, gate in masks(net).items()})
            torch.rand(3)  # the global generator plays no part
        return seen

    first, second = run_it(), run_it()
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(first[2]["fc1"], first[3]["fc1"])
    moved = int((first[3]["fc1"] & ~first[2]["fc1"]).sum())
    assert 0 < moved <= round(0.3 * int(first[2]["fc1"].sum()))
    assert int(first[3]["fc1"].sum()) == int(first[2]["fc1"].sum())


def test_dnw_trains_all_weights_and_shows_the_largest() -> None:
    net, run, opt = attached(DNW(density=0.25))
    for _ in range(10):
        before = {name: weight(net, name).detach().clone() for name in masks(net)}
        step(net, run, opt)
        for name, gate in masks(net).items():
            values = weight(net, name).detach()
            keep = round(0.25 * values.numel())
            assert int(gate.mask.sum()) == keep
            assert values.abs()[gate.mask].min() >= values.abs()[~gate.mask].max()
            assert not torch.equal(values[~gate.mask], before[name][~gate.mask])
    small = run.finish()
    assert int((small.get_submodule("fc2").weight != 0).sum()) == round(0.25 * 30)


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow", "magnitude", "random"])
def test_pruning_at_initialisation_keeps_the_density(score: Any) -> None:
    net, run, opt = attached(AtInit(score=score, density=0.3))
    assert open_share(net) == pytest.approx(0.3, abs=2 / 890)
    held = {name: gate.mask.clone() for name, gate in masks(net).items()}
    for _ in range(5):
        step(net, run, opt)
    assert all(torch.equal(gate.mask, held[name]) for name, gate in masks(net).items())


def test_snip_keeps_the_most_sensitive_weights() -> None:
    torch.manual_seed(0)
    dense = Chain().double()
    names = ["conv1", "conv2", "fc1", "fc2"]
    loss(dense).backward()
    scores = torch.cat([(p := weight(dense, n)).detach().mul(p.grad).abs().flatten() for n in names])  # type: ignore[arg-type]
    net, _, _ = attached(AtInit(score="snip", density=0.2))
    kept = torch.cat([masks(net)[n].mask.flatten() for n in names])
    assert scores[kept].min() >= scores[~kept].max()


def test_scores_of_the_loss_need_a_loss() -> None:
    with pytest.raises(ValueError, match="tell attach a loss"):
        pr.attach(Chain(), AtInit(score="snip"), chain_batch(2)[0])


def test_weights_that_are_zero_stay_zero() -> None:
    torch.manual_seed(0)
    net = Chain().double()
    with torch.no_grad():
        weight(net, "fc1").mul_(torch.rand(10, 32) < 0.3)
    zero = weight(net, "fc1") == 0
    run = pr.attach(net, Masked(), BATCH[0][:2])
    opt = torch.optim.AdamW(run.parameter_groups(lr=0.01, weight_decay=0.1), lr=0.01)
    for _ in range(5):
        step(net, run, opt)
    assert torch.equal(weight(net, "fc1") == 0, zero)


def test_slimming_closes_the_units_of_smallest_scale() -> None:
    net, run, opt = attached(Slimming(density=0.5, rate=1e-3), steps=10)
    assert float(run.penalty().detach()) == pytest.approx(1e-3 * (6 + 8 + 10))
    for _ in range(10):
        step(net, run, opt)
    found = {name: gate for name, _, gate in gates(net)}
    scales = {"conv1": net.norm1.weight.detach().abs()}
    for name in ("conv2", "fc1"):
        scales[name] = found[name].scale.detach().abs()  # type: ignore[operator, union-attr]
    flat = torch.cat(list(scales.values()))
    assert run.next_round(opt)
    assert float(run.penalty()) == 0
    kept = torch.cat([found[name].support() for name in ("norm1", "conv2", "fc1")])
    assert int(kept.sum()) == 12
    best = torch.cat([scale == scale.max() for scale in scales.values()])  # no layer may disappear
    assert flat[kept & ~best].min() >= flat[~kept].max()
    for _ in range(10):
        step(net, run, opt)
    assert not run.next_round(opt)
    small = run.finish()
    assert torch.allclose(small(BATCH[0]), net.eval()(BATCH[0]), atol=1e-10)
    widths = [small.get_submodule(n).weight.shape[0] for n in ("conv1", "conv2", "fc1")]
    assert sum(widths) == 12


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GMP(density=0), "density=0"),
        (lambda: GMP(ramp=(0.5, 0.5)), "begin before it ends"),
        (lambda: RigL(drop=0), "start=0"),
        (lambda: RigL(every="x"), "optimizer steps"),
        (lambda: SET(end=2), "end=2"),
        (lambda: DNW(density=1.5), "density=1.5"),
        (lambda: AtInit(score="best"), "choose one of snip"),  # type: ignore[arg-type]
        (lambda: AtInit(iterations=0), "iterations=0"),
        (lambda: Slimming(rate=-1), "rate=-1"),
        (lambda: pr.IMP(rate=1.0), "rate=1.0"),
        (lambda: pr.IMP(prunings=0), "prunings=0"),
        (lambda: pr.IMP(retrain="all"), "choose one of weights"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("method", [GMP(), RigL()])
def test_schedules_need_the_length_of_training(method: pr.Method) -> None:
    with pytest.raises(ValueError, match="tell attach its length"):
        attached(method, steps=None)


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize(("ramp", "begin"), [((0.0, 0.01), 0), ((0.0, 0.5), 25)])
def test_gmp_reaches_its_density_whenever_it_begins(ramp: tuple[float, float], begin: int, recover: bool) -> None:
    net = Chain().double()
    method = GMP(density=0.1, ramp=ramp, every=5, recover=recover)
    run = pr.attach(net, method, BATCH[0][:2], steps=40, step=begin)
    opt = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05)
    seen = []
    while run.clock.step < 40:
        step(net, run, opt)
        seen.append({name: gate.mask.clone() for name, gate in masks(net).items()})
    assert open_share(net) == pytest.approx(0.1, abs=0.01)
    for name, mask in seen[0].items():
        assert torch.equal(mask, seen[-1][name]), "once there, the masks stay"


def test_gmp_puts_aside_in_the_precision_of_the_weights() -> None:
    net, run, opt = attached(GMP(density=0.2, every=4))
    for _ in range(8):
        step(net, run, opt)
    assert all(gate.aside is not None and gate.aside.dtype == torch.float64 for gate in masks(net).values())
    copy_, again, _ = attached(GMP(density=0.2, every=4))
    again.load_state_dict(run.state_dict())
    copy_.load_state_dict(net.state_dict())
    for name, gate in masks(net).items():
        mine, other = gate.aside, masks(copy_)[name].aside
        assert mine is not None
        assert other is not None
        assert torch.equal(mine, other)


def test_rigl_sees_dense_gradients_in_eval_mode_too() -> None:
    net, run, opt = attached(RigL(density=0.2, every=2))
    copy_, once, other = attached(RigL(density=0.2, every=2))
    net.eval()
    for _ in range(2):
        step(net, run, opt)
        step(copy_, once, other)
    for name, gate in masks(net).items():
        assert torch.equal(gate.mask, masks(copy_)[name].mask), "a chain without norms is the same in both modes"


class Tied(nn.Module):
    """Two blocks with norms on one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(x)
        x = x + self.b(x)
        return self.head(x.relu().mean((2, 3)))


def test_slimming_charges_every_norm_of_a_tied_group() -> None:
    net = Tied()
    run = pr.attach(net, Slimming(rate=2.0), torch.randn(2, 1, 5, 5), steps=4)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    run.penalty().backward()
    assert run.penalty().item() == pytest.approx(2.0 * sum(norm.weight.numel() for norm in norms))
    for norm in norms:
        assert norm.weight.grad is not None
        assert torch.equal(norm.weight.grad, torch.full((4,), 2.0))


def test_small_layers_keep_something() -> None:
    for method in (GMP(density=0.005, every=1), DNW(density=0.005), AtInit(score="random", density=0.005)):
        net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
        run = pr.attach(net, method, torch.randn(2, 40), steps=2)
        opt = torch.optim.SGD(run.parameter_groups(lr=0.05), lr=0.05)
        for _ in range(2):
            opt.zero_grad()
            F.cross_entropy(net(torch.randn(8, 40)), torch.zeros(8, dtype=torch.int64)).backward()
            run.step(opt)
        if isinstance(method, AtInit):
            continue  # one threshold for the whole network
        assert all(bool(gate.mask.any()) for gate in masks(net).values())


@pytest.mark.parametrize("hook", ["prune", "weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_weights_that_hooks_compute_carry_no_gates(hook: str) -> None:
    layer = nn.Linear(6, 8)
    if hook == "prune":
        prune.random_unstructured(layer, "weight", 0.5)
    else:
        getattr(nn.utils, hook)(layer)
    with pytest.raises(ValueError, match="computed from other parameters"):
        pr.attach(nn.Sequential(layer), GMP(), torch.randn(2, 6), steps=4)


def test_sparse_embeddings_carry_no_gates() -> None:
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True))
    with pytest.raises(ValueError, match="sparse=False"):
        pr.attach(net, GMP(), torch.tensor([[1, 2]]), steps=4)
