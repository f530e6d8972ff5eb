"""What is true of every relaxation at every parameter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paring.gates.relax import Concrete, HardConcrete, Relaxation, StraightThroughBernoulli

parameters = st.floats(-8, 8)
quick = settings(max_examples=20, deadline=None)


def f64(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def midpoints(n: int) -> Tensor:
    """n uniform variables, one per equal slice of (0, 1): averages over them are exact to about 1 / n."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@quick
@given(a=parameters)
def test_cdf_rises_from_0_to_1(gate: Relaxation, a: float) -> None:
    values = gate.cdf(torch.linspace(-3, 4, 701, dtype=torch.float64), f64(a))
    assert (values.diff() >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1


@quick
@given(a=parameters)
def test_cdf_is_exact_outside_the_support(a: float) -> None:
    for gate, low, high in ((HardConcrete(), -0.1, 1.1), (Concrete(), 0.0, 1.0)):
        outside = gate.cdf(f64(-1e9, low - 1e-3, low, high, high + 1e-3, 1e9), f64(a))
        assert outside.tolist() == [0, 0, 0, 1, 1, 1]
        assert gate.quantile(f64(0, 1), f64(a)).tolist() == pytest.approx([low, high])


@quick
@given(a=parameters, p=st.floats(1e-6, 1 - 1e-6))
def test_quantile_inverts_cdf(continuous: Relaxation, a: float, p: float) -> None:
    x = continuous.quantile(p, f64(a))
    low, high = continuous.quantile(f64(0, 1), f64(a)).tolist()
    if low + 1e-6 < x.item() < high - 1e-6:  # closer to an end, x itself has no digits left
        assert continuous.cdf(x, f64(a)).item() == pytest.approx(p, abs=1e-9)
        assert torch.allclose(continuous.quantile(continuous.cdf(x, f64(a)), f64(a)), x, atol=1e-9)


@quick
@given(a=parameters)
def test_quantile_inverts_cdf_of_a_step(a: float) -> None:
    gate, x = StraightThroughBernoulli(), f64(0, 1)
    assert torch.equal(gate.quantile(gate.cdf(x, f64(a)), f64(a)), x)


@quick
@given(a=parameters, u=st.floats(1e-9, 1 - 1e-9))
def test_sample_is_the_clipped_quantile(gate: Relaxation, a: float, u: float) -> None:
    assert torch.equal(gate.sample(f64(a), f64(u)), gate.quantile(u, f64(a)).clamp(0, 1))


@quick
@given(a=parameters)
def test_chance_is_what_cdf_leaves(gate: Relaxation, a: float) -> None:
    closed = gate.threshold if isinstance(gate, Concrete) else 0.0
    assert gate.prob_open(f64(a)).item() == pytest.approx(1 - gate.cdf(closed, f64(a)).item(), abs=1e-12)


@quick
@given(a=parameters)
def test_samples_have_the_stated_zeros_and_mean(gate: Relaxation, a: float) -> None:
    n = 20_000
    z = gate.sample(f64(a), midpoints(n))
    closed = gate.threshold if isinstance(gate, Concrete) else 0.0
    assert (z <= closed).double().mean().item() == pytest.approx(1 - gate.prob_open(f64(a)).item(), abs=1.01 / n)
    assert z.mean().item() == pytest.approx(gate.mean(f64(a)).item(), abs=1 / n)
    assert z.min() >= 0
    assert z.max() <= 1


@quick
@given(a=parameters, b=parameters)
def test_more_is_more_open(gate: Relaxation, a: float, b: float) -> None:
    low, high = f64(min(a, b)), f64(max(a, b))
    u = midpoints(50)
    assert (gate.sample(low, u) <= gate.sample(high, u)).all()
    for f in (gate.prob_open, gate.estimate, gate.mean):
        assert f(low).item() <= f(high).item() + 1e-14


@quick
@given(a=parameters, b=parameters)
def test_kl_is_a_divergence(gate: Relaxation, a: float, b: float) -> None:
    apart, same = gate.kl(f64(a), f64(b)).item(), gate.kl(f64(a), a).item()
    assert same == 0
    assert apart >= 0
    if abs(a - b) > 0.1 and -2 < a < 2:
        assert apart > 0


@quick
@given(a=st.floats(-1.5, 2.5), step=st.sampled_from([1e-3, -1e-3]))
def test_kl_is_quadratic_close_by(gate: Relaxation, a: float, step: float) -> None:
    """KL(a, a + d) and KL(a + d, a) both tend to I d^2 / 2: their ratio tends to 1, which a wrong sign would spoil."""
    there, back = gate.kl(f64(a), a + step).item(), gate.kl(f64(a + step), a).item()
    assert there == pytest.approx(back, rel=2e-2)
    assert gate.kl(f64(a), a + 2 * step).item() == pytest.approx(4 * there, rel=3e-2)


def test_shapes_broadcast(gate: Relaxation) -> None:
    a, u = torch.zeros(3, 1), torch.rand(2, 1, 4)
    assert gate.sample(a, u).shape == (2, 3, 4)
    assert gate.cdf(u, a).shape == gate.quantile(u, a).shape == (2, 3, 4)
    assert gate.kl(a, torch.ones(4)).shape == (3, 4)
    for f in (gate.prob_open, gate.estimate, gate.mean):
        assert f(a).shape == (3, 1)
    assert gate.sample(log_alpha=a, u=u).shape == gate.cdf(x=u, log_alpha=a).shape
    assert gate.quantile(p=u, log_alpha=a).shape == (2, 3, 4)
    assert gate.kl(log_alpha=a, prior=0.5).shape == a.shape
