"""Calibrated rounding: its parts against slow twins, and what it is for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.compression import CalibratedRounding, GridRounding, Objective, compress
from paring.compression import second_moments as moments_module
from paring.compression.calibrated_rounding import bisect
from paring.compression.feedback import bits_of, factor, rounded_in_turn, spared
from paring.compression.output_curvature import output_curvature
from paring.compression.second_moments import Layout, second_moments
from paring.core import ParingWarning, gauss_newton
from tests.reference import rounding as slow


@pytest.mark.parametrize("price", [0.0, 0.3])
@pytest.mark.parametrize("columns", [1, 5, 70])
def test_feedback_is_optimal_brain_quantisation_in_order(columns: int, price: float) -> None:
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(2, columns + 3, columns, generator=generator, dtype=torch.double).cumsum(-1)
    moments = x.mT @ x
    weight = 3 * torch.randn(2, 4, columns, generator=generator, dtype=torch.double)
    bits = bits_of(weight.round())
    fast = rounded_in_turn(weight, factor(moments, 0.01), bits, price)
    damped = moments + 0.01 * moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(columns)
    for block in range(2):
        # prices are in units of the mean over all blocks, so that a block takes a share of it
        mean = spared(factor(moments, 0.01)).mean() / spared(factor(moments, 0.01))[block].mean()
        for row in range(4):
            twin = slow.rounded_in_turn(weight[block, row], damped[block], bits, price * float(mean))
            assert torch.equal(fast[block, row], twin)


def test_factors_of_nothing_and_of_noise() -> None:
    dead = torch.zeros(1, 3, 3)
    assert torch.allclose(spared(factor(dead, 0.01)), torch.full((1, 3), 1.01))
    broken = torch.diag(torch.tensor([1.0, -0.2, 1.0]))[None]
    assert bool(factor(broken, 0.01).isfinite().all())


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_the_squared_change_of_the_output(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.double)
    _agrees(layer, layer.weight, lambda: layer(x))


def test_moments_of_transformers_conv1d() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer, x = Conv1D(4, 6).double(), torch.randn(3, 2, 6, dtype=torch.double)
    _agrees(layer, layer.weight, lambda: layer(x))


def test_wide_columns_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "WIDEST", 4)
    layer, x = nn.Linear(6, 2).double(), torch.randn(5, 6, dtype=torch.double)
    found = second_moments({"w": layer.weight}, lambda: layer(x))["w"]
    assert found.total.shape == (2, 3, 3)
    assert torch.allclose(found.total[1], x[:, 3:].T @ x[:, 3:])


def _agrees(layer: nn.Module, weight: nn.Parameter, call: Any) -> None:
    """||f(W + D) - f(W)||^2 = tr(D H D^T)."""
    found = second_moments({"w": weight}, call)["w"]
    before, change = call(), torch.randn_like(weight)
    assert torch.equal(found.layout.weight(found.layout.matrices(change)), change)
    with torch.no_grad():
        weight += change
        moved = (call() - before).square().sum()
    rows = found.layout.matrices(change)
    assert torch.allclose((rows @ found.total * rows).sum(), moved)


def test_moments_of_packed_attention_and_recurrent_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.double)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    found = second_moments(dict(attention.named_parameters()), lambda: attention(x))
    flat = x.flatten(0, 1)
    assert torch.allclose(found["self_attn.in_proj_weight"].total[0], flat.T @ flat)
    assert {"self_attn.out_proj.weight", "linear1.weight", "linear2.weight"} < found.keys()
    lstm = nn.LSTM(8, 5, 2, batch_first=True).double()
    found = second_moments(dict(lstm.named_parameters()), lambda: lstm(x))
    assert torch.allclose(found["weight_ih_l0"].total[0], flat.T @ flat)
    first = nn.LSTM(8, 5, batch_first=True).double()
    first.load_state_dict({n: v for n, v in lstm.state_dict().items() if n.endswith("l0")})
    hidden = first(x)[0]
    assert torch.allclose(found["weight_ih_l1"].total[0], hidden.flatten(0, 1).T @ hidden.flatten(0, 1))
    assert torch.allclose(found["weight_hh_l0"].total[0], hidden[:, :-1].flatten(0, 1).T @ hidden[:, :-1].flatten(0, 1))


def test_of_many_rows_an_even_sample_keeps_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "ROWS", 2)
    layer, x = nn.Linear(3, 2), torch.ones(100, 3)
    assert torch.allclose(
        second_moments({"w": layer.weight}, lambda: layer(x))["w"].total, torch.full((1, 3, 3), 100.0)
    )
    conv, image = nn.Conv1d(1, 1, 3, bias=False), torch.ones(4, 1, 27)
    assert torch.allclose(
        second_moments({"w": conv.weight}, lambda: conv(image))["w"].total, torch.full((1, 3, 3), 100.0)
    )


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.table(x).mean(1).tanh())
        return found


@pytest.mark.parametrize("kind", ["cross-entropy", "own outputs", "linear"])
def test_curvature_is_that_of_gauss_and_newton(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = itertools.product((-1.0, 1.0), repeat=9)  # all directions: the mean is exact
    monkeypatch.setattr(gauss_newton, "_signs", lambda leaf, _: torch.tensor(next(every)).view(3, 3).to(leaf))
    torch.manual_seed(0)
    net = Words().double()
    x = torch.tensor([[0, 1], [1, 1], [2, 0]])
    y = torch.tensor([0, 2, 1])
    kept = net(x).detach()
    losses: dict[str, Any] = {
        "cross-entropy": lambda out: F.cross_entropy(out, y),
        "own outputs": lambda out: (out - kept).square().mean(),  # its gradient is zero
        "linear": lambda out: out.sum(),  # without curvature: squared distance
    }
    loss = losses[kind]
    parameters = dict(net.named_parameters())
    found = output_curvature(
        net,
        lambda one, batch: loss(one(batch)),
        [x],
        ["table.weight", "out.weight"],
        tables=["table.weight"],
        probes=512,
    )
    c = (
        torch.eye(9, dtype=torch.double)
        if kind == "linear"
        else torch.autograd.functional.hessian(loss, kept).reshape(9, 9)
    )
    for name in ("table.weight", "out.weight"):
        j = torch.autograd.functional.jacobian(
            lambda w, name=name: torch.func.functional_call(net, {**parameters, name: w}, (x,)), parameters[name]
        ).flatten(0, 1)
        rows = torch.einsum("anc,ab,bnc->n", j, c, j)
        assert torch.allclose(found[name].rows / 512, rows)
        if name == "table.weight":
            columns = torch.einsum("anc,ab,bnd->cd", j, c, j)
            assert torch.allclose(found[name].columns / 512, columns)
    assert found["table.weight"].rows[3] == 0  # the word that never comes
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("end", "first"), [(2.3, 4.0), (6.7, 4.0), (0.2, 4.0), (40.0, 4.0)])
def test_bisection_ends_just_above_the_bound(end: float, first: float) -> None:
    tried: list[float] = []

    def within(bits: float) -> bool:
        tried.append(bits)
        return bits >= end

    bisect(within, first, 5)
    kept = [bits for bits in tried if bits >= end]
    assert len(tried) <= 9 + 5
    assert min(tried) > 0
    if end < 12:
        assert min(kept) - end < 2**-5 * max(1.0, end)


def correlated() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """A network whose inputs are nearly of low rank, with its own outputs as the answers."""
    torch.manual_seed(0)
    basis = torch.randn(6, 48)
    inputs = [torch.randn(128, 6) @ basis + 0.1 * torch.randn(128, 48) for _ in range(6)]
    net = nn.Sequential(nn.Linear(48, 96), nn.Tanh(), nn.Linear(96, 8)).eval()
    pairs = [(x, net(x).detach()) for x in inputs]
    return net, pairs[:3], pairs[3:]


def test_smaller_than_plain_grids_within_the_same_bound() -> None:
    net, calibration, held = correlated()
    objective = Objective(lambda one, pair: F.mse_loss(one(pair[0]), pair[1]), calibration)
    ours = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=1e-3,
        compressor=CalibratedRounding(halvings=2),
        small_bits=0,
    )
    plain = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=1e-3,
        compressor=GridRounding((0.1, 0.2), (0.0, 0.1)),
        small_bits=0,
    )
    assert ours.bytes < 0.8 * plain.bytes
    fresh = Objective(objective.loss, held)
    assert fresh(ours.net) < 2e-3  # not by learning the calibration data by heart


def test_a_loss_that_does_not_say_what_matters_is_told_of() -> None:
    net = nn.Sequential(nn.Linear(8, 40))
    objective = Objective(lambda one, _: one[0].weight.square().mean(), [None])
    with pytest.warns(ParingWarning, match="does not depend on what the network answers"):
        found = compress(net, objective.batches, objective.loss, max_loss_increase=0.1, compressor=CalibratedRounding())
    assert found.chosen is not None


def test_settings() -> None:
    for name, value in itertools.product(("bits", "damping", "batches"), (0, -1)):
        with pytest.raises(ValueError, match="out of range"):
            CalibratedRounding(**{name: value})
    with pytest.raises(ValueError, match="has to be finite"):
        compress(
            nn.Linear(2, 2),
            [0],
            lambda n, _: n.bias.sum(),
            max_loss_increase=1,
            compressor=CalibratedRounding(bits=math.inf),
        )


def test_layouts_of_a_transposed_group() -> None:
    layout = Layout((4, 3, 2), first=True, groups=2)
    weight = torch.arange(24.0).view(4, 3, 2)
    assert layout.matrices(weight).shape == (2, 6, 2)
    assert torch.equal(layout.weight(layout.matrices(weight)), weight)
