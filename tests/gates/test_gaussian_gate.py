"""Gaussian gates: the KL against quadrature, the noise of layers against loops over weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from paring.core import put
from paring.gates import GaussianGate


def exact_kl(alpha: float) -> float:
    """KL from the log-uniform prior, zero as alpha grows: E log|1 + sqrt(alpha) e| - log(alpha)/2 + (gamma + log 2)/2."""
    e = torch.linspace(-9, 9, 900_000, dtype=torch.float64) + 1e-7
    density = (-e * e / 2).exp()
    mean = float(((1 + math.sqrt(alpha) * e).abs().log() * density).sum() / density.sum())
    return mean - 0.5 * math.log(alpha) + (0.5772156649 + math.log(2)) / 2


@pytest.mark.parametrize("log_alpha", [-6.0, -3.0, -1.0, 0.0, 1.5, 3.0, 6.0])
def test_the_approximation_of_the_kl(log_alpha: float) -> None:
    weight = torch.tensor([[0.3]], dtype=torch.float64)
    gate = GaussianGate(weight, log_sigma2=log_alpha + math.log(0.09 + 1e-8))
    assert gate.log_alpha(weight).item() == pytest.approx(log_alpha, abs=1e-10)
    sigma = 1 / (1 + math.exp(-(1.87320 + 1.48695 * log_alpha)))
    formula = -(0.63576 * sigma - 0.5 * math.log(1 + math.exp(-log_alpha)) - 0.63576)
    assert gate.divergence(weight).item() == pytest.approx(formula, abs=1e-10)
    assert gate.divergence(weight).item() == pytest.approx(exact_kl(math.exp(log_alpha)), abs=0.02)


def moments(layer: nn.Module, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out = layer(x.repeat(draws, *[1] * (x.dim() - 1)))  # every row has noise of its own
    out = out.view(draws, len(x), *out.shape[1:])
    return out.mean(0), out.var(0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 4), (3, 5)), (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), (2, 4, 5, 5))],
    ids=["linear", "convolution"],
)
def test_outputs_have_the_mean_and_variance_of_drawn_weights(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    mean = layer(x).detach()
    gate = GaussianGate(layer.weight)
    gate.log_sigma2.data.uniform_(-4, 0)
    spread = torch.zeros_like(mean)
    plain = layer.weight.detach().clone()
    for index in range(plain.numel()):  # one weight at a time: its variance times the square of what it multiplies
        one = torch.zeros(plain.numel(), dtype=torch.float64)
        one[index] = 1.0
        layer.weight.data = one.view_as(plain)
        spread += (
            gate.log_sigma2.flatten()[index].exp().detach() * (layer(x) - layer(torch.zeros_like(x))).detach() ** 2
        )
    layer.weight.data = plain
    put(layer, "weights", gate)
    draws = 4000
    found_mean, found_variance = moments(layer.train(), x, draws)
    assert bool(((found_mean - mean).abs() < 5 * (spread / draws).sqrt() + 1e-6).all())
    assert bool(((found_variance - spread).abs() < 5 * spread * math.sqrt(2 / draws) + 1e-9).all())
    first, second = layer.eval()(x), layer(x)
    assert torch.equal(first, second), "no noise at test time"


def test_closed_where_log_alpha_is_above_the_threshold() -> None:
    weight = torch.tensor([[1.0, -0.1, 1e-3, 0.0]], dtype=torch.float64)
    gate = GaussianGate(weight, log_sigma2=-3.0)
    assert gate.log_alpha(weight)[0].tolist() == pytest.approx(
        [-3.0, math.log(math.exp(-3) / 0.01), 8.0, 8.0], abs=1e-5
    )
    assert gate.support().tolist() == [[True, True, False, False]]
    assert gate.fold(weight).tolist() == [[1.0, -0.1, 0.0, 0.0]]
    assert torch.equal(gate.eval().see(weight), gate.fold(weight))
    assert torch.equal(gate(), gate.value())
    assert gate.variance(weight) is None
    assert torch.equal(gate.train().see(weight), weight)
