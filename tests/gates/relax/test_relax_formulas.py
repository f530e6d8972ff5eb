"""Every formula against its naive twin, scipy quadrature, Monte Carlo, and the numbers worked out for the paper."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from paring.gates.relax import Concrete, HardConcrete, Relaxation, StraightThroughBernoulli
from reference import relax as naive

parameters = st.floats(-6, 6)
PAIRS = [(0.0, 0.0), (1.0, -0.5), (-1.0, 0.5), (0.3, 0.3001), (2.0, -3.0), (-2.5, 1.0), (0.2, 3.0)]


def f64(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def quad(f: Any, low: float, high: float) -> float:
    value: float = integrate.quad(f, low, high, epsabs=1e-12, epsrel=1e-12, limit=400)[0]
    return value


@settings(max_examples=25, deadline=None)
@given(a=parameters, u=st.floats(1e-3, 1 - 1e-3), x=st.floats(-0.5, 1.7))
def test_twin(gate: Relaxation, a: float, u: float, x: float) -> None:
    slow = naive.twin(gate)
    assume(abs(x) > 1e-9)  # textbook formulas overflow at the edge of the support
    assume(abs(slow.prob_open(a) - 0.5) > 1e-9 and abs(slow.cdf(0.0, a) - u) > 1e-9)  # steps, where rounding decides
    assert gate.sample(f64(a), f64(u)).item() == pytest.approx(slow.sample(a, u), abs=1e-10)
    assert gate.prob_open(f64(a)).item() == pytest.approx(slow.prob_open(a), abs=1e-12)
    assert gate.estimate(f64(a)).item() == pytest.approx(slow.estimate(a), abs=1e-12)
    assert gate.cdf(x, f64(a)).item() == pytest.approx(slow.cdf(x, a), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_kl_and_mean_twin(gate: Relaxation, a: float, b: float) -> None:
    slow = naive.twin(gate)
    assert gate.kl(f64(a), b).item() == pytest.approx(slow.kl(a, b), rel=1e-7, abs=1e-9)
    assert gate.mean(f64(a)).item() == pytest.approx(slow.mean(a), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_kl_is_that_of_the_mixture(continuous: Relaxation, a: float, b: float) -> None:
    """Point masses and density in their textbook form, adaptive quadrature from scipy."""
    slow = naive.twin(continuous)

    def between(x: float) -> float:
        q: float = slow.pdf(x, a)
        p: float = slow.pdf(x, b)
        return q * math.log(q / p)

    ends = 0.0
    if not isinstance(continuous, Concrete):
        q0, p0 = slow.cdf(0.0, a), slow.cdf(0.0, b)
        q1, p1 = slow.survival(1.0, a), slow.survival(1.0, b)
        ends = q0 * math.log(q0 / p0) + q1 * math.log(q1 / p1)
    direct = ends + quad(between, 0, 0.5) + quad(between, 0.5, 1)
    assert continuous.kl(f64(a), b).item() == pytest.approx(direct, abs=1e-6)


@pytest.mark.parametrize("d", [1e-4, 0.01, 0.2, 0.4999, 0.5001, 1.0, 7.0])
def test_kl_of_concrete_to_the_last_digits(d: float) -> None:
    """d coth(d / 2) - 2, in forty digits, on both sides of the switch to the series."""
    with localcontext(prec=40):
        e = Decimal(d).exp()
        exact = float(Decimal(d) * (e + 1) / (e - 1) - 2)
    assert Concrete().kl(f64(0.0), d).item() == pytest.approx(exact, rel=2e-14)
    assert Concrete().kl(f64(0.0), -d).item() == pytest.approx(exact, rel=2e-14)


@pytest.mark.parametrize(("a", "b"), [(1.0, -0.5), (-0.4, 0.8)])
def test_kl_monte_carlo(continuous: Relaxation, a: float, b: float) -> None:
    """Average of ln q(z) - ln p(z) over samples, with masses at 0 and 1 and a density from differentiating the cdf."""
    generator = torch.Generator().manual_seed(1)
    z = continuous.sample(f64(a), torch.rand(200_000, generator=generator, dtype=torch.float64))

    def log_likelihood(location: float) -> Tensor:
        inner = z.clamp(1e-9, 1 - 1e-9).requires_grad_()
        (density,) = torch.autograd.grad(continuous.cdf(inner, f64(location)).sum(), inner)
        below, above = continuous.cdf(0.0, f64(location)), 1 - continuous.cdf(1.0, f64(location))
        return torch.where(z == 0, below.log(), torch.where(z == 1, above.log(), density.log()))

    ratio = log_likelihood(a) - log_likelihood(b)
    error = ratio.std().item() / math.sqrt(len(ratio))
    assert continuous.kl(f64(a), b).item() == pytest.approx(ratio.mean().item(), abs=5 * error)


@pytest.mark.parametrize("a", [-4.0, -0.7, 0.0, 0.5, 1.3, 5.0])
def test_mean_is_the_area_above_the_cdf(continuous: Relaxation, a: float) -> None:
    def survival(x: float) -> float:
        return 1 - float(continuous.cdf(x, f64(a)))

    assert continuous.mean(f64(a)).item() == pytest.approx(quad(survival, 0, 1), abs=1e-9)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("gamma", "zeta"), [(-0.1, 1.1), (-1e-3, 1.001), (-3.0, 1.2)])
def test_mean_at_any_temperature(beta: float, gamma: float, zeta: float) -> None:
    gate, a = HardConcrete(beta, gamma, zeta), 0.4
    slow = naive.twin(gate)
    direct = quad(lambda x: 1 - slow.cdf(x, a), 0, 0.5) + quad(lambda x: 1 - slow.cdf(x, a), 0.5, 1)
    assert gate.mean(f64(a)).item() == pytest.approx(direct, abs=1e-9)


def test_density_of_twin_is_the_derivative_of_cdf(continuous: Relaxation) -> None:
    slow = naive.twin(continuous)
    x = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    (density,) = torch.autograd.grad(continuous.cdf(x, f64(0.7)).sum(), x)
    assert density.tolist() == pytest.approx([slow.pdf(v, 0.7) for v in x.tolist()], rel=1e-10)


def test_numbers_at_the_papers_constants() -> None:
    gate = HardConcrete()
    assert gate.clamp == (math.log(1e-2), math.log(1e2))
    zero = f64(0.0)
    assert gate.cdf(0.0, zero).item() == pytest.approx(0.168, abs=5e-4)
    assert 1 - gate.cdf(1.0, zero).item() == pytest.approx(0.168, abs=5e-4)
    assert gate.prob_open(zero).item() == pytest.approx(0.832, abs=5e-4)
    assert gate.estimate(zero).item() == pytest.approx(0.5)
    assert torch.logit(gate.prob_open(zero)).item() == pytest.approx(1.5986, abs=5e-5)
    for droprate, chance, test in ((0.3, 0.920, 0.74), (0.2, 0.952, 0.86)):
        start = f64(gate.logits(1 - droprate))
        assert gate.prob_open(start).item() == pytest.approx(chance, abs=5e-4)
        assert gate.estimate(start).item() == pytest.approx(test, abs=5e-3)
    for a, mean, test in ((1.0, 0.707, 0.777), (2.0, 0.857, 0.957)):
        assert gate.mean(f64(a)).item() == pytest.approx(mean, abs=5e-4)
        assert gate.estimate(f64(a)).item() == pytest.approx(test, abs=5e-4)


def test_where_the_paper_closes_a_gate() -> None:
    gate, edge = HardConcrete(), math.log(11)
    assert edge == pytest.approx(2.398, abs=5e-4)
    assert gate.estimate(torch.tensor([-edge - 1e-4, edge + 1e-4])).tolist() == [0.0, 1.0]
    assert 0 < gate.estimate(f64(-edge + 1e-4)).item() < gate.estimate(f64(edge - 1e-4)).item() < 1
    assert gate.prob_open(f64(-edge)).item() == pytest.approx(0.310, abs=5e-4)
    assert gate.clamp is not None
    assert gate.prob_open(torch.tensor(gate.clamp)).tolist() == pytest.approx([0.0471, 0.9980], abs=5e-5)


def test_second_moment_is_not_the_chance() -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = HardConcrete().sample(f64(0.0), u)
    assert z.square().mean().item() == pytest.approx(0.398, abs=5e-4)


def test_eq_28_takes_unnormalised_densities() -> None:
    """q at 1, p at -0.5: 0.355. Renormalising both densities on (0, 1) would give 0.416 (see the module of `kl`)."""
    gate, q, p = HardConcrete(), f64(1.0), f64(-0.5)
    assert gate.kl(q, p).item() == pytest.approx(0.355, abs=5e-4)
    between_q, between_p = (gate.cdf(1.0, v) - gate.cdf(0.0, v) for v in (q, p))
    wrong = gate.kl(q, p) + between_q * torch.log(between_p / between_q)
    assert wrong.item() == pytest.approx(0.416, abs=5e-4)


def test_median_is_the_median() -> None:
    gate = HardConcrete(test="median")
    a = torch.linspace(-5, 5, 41, dtype=torch.float64)
    assert torch.allclose(gate.estimate(a), gate.sample(a, f64(0.5)))
    assert torch.equal(gate.estimate(a) > 0, gate.prob_open(a) > 0.5)


@pytest.mark.parametrize("keep", [1e-3, 0.2, 0.5, 0.8, 0.999])
def test_logits(gate: Relaxation, keep: float) -> None:
    start = gate.logits(keep)
    if isinstance(gate, HardConcrete):
        assert start == pytest.approx(math.log(keep / (1 - keep)))
        assert gate.prob_open(f64(start)).item() > keep
    else:
        assert gate.prob_open(f64(start)).item() == pytest.approx(keep, rel=1e-9)


def test_bernoulli_is_hard_forward_and_soft_backward() -> None:
    gate = StraightThroughBernoulli()
    a = torch.tensor([-3.0, 0.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    z = gate.sample(a, f64(0.5))
    assert z.tolist() == [0.0, 0.0, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(z.sum(), a)
    p = torch.sigmoid(a)
    assert torch.allclose(gradient, p * (1 - p))
