"""Both ends of the number line, gradients, half precision, and relaxations as values."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paring.gates.relax import Concrete, HardConcrete, RectifiedGaussian, RectifiedLogistic, Relaxation

FAR = {
    torch.float16: [-50.0, -4.6, 0.0, 4.6, 50.0],
    torch.bfloat16: [-50.0, -4.6, 0.0, 4.6, 50.0],
    torch.float32: [-50.0, -17.0, -4.6, 0.0, 0.5, 1.0, 4.6, 17.0, 50.0],
    torch.float64: [-1e4, -700.0, -50.0, 0.0, 1.0, 50.0, 700.0, 1e4],
}
NOISE = [0.0, 1e-30, 1e-6, 0.5, 1 - 1e-6, 1.0]


@pytest.mark.parametrize("dtype", FAR, ids=str)
def test_everything_stays_finite(gate: Relaxation, dtype: torch.dtype) -> None:
    a = torch.tensor(FAR[dtype], dtype=dtype)[:, None].requires_grad_()
    noise = torch.tensor(NOISE, dtype=dtype)
    others = a.detach().T.clone().requires_grad_()
    for value in (
        gate.sample(a, noise),
        gate.prob_open(a),
        gate.mean(a),
        gate.estimate(a),
        gate.cdf(torch.tensor([-1.0, -0.1, 0.0, 0.3, 1.0, 1.1, 2.0]), a),
        gate.quantile(noise[2:4], a),
        gate.kl(a, others),
    ):
        assert value.dtype == dtype
        assert value.isfinite().all()
        if value.requires_grad:
            for gradient in torch.autograd.grad(value.sum(), [a, others], allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_is_float32_rounded_once(gate: Relaxation, dtype: torch.dtype) -> None:
    a = torch.linspace(-5, 5, 41).to(dtype)
    u = torch.linspace(0, 1, 41)
    assert torch.equal(gate.sample(a, u), gate.sample(a.float(), u).to(dtype))
    assert torch.equal(gate.kl(a, 0.3), gate.kl(a.float(), 0.3).to(dtype))
    assert torch.equal(gate.cdf(u, a), gate.cdf(u, a.float()).to(dtype))
    assert torch.equal(gate.quantile(u[1:-1], a[1:-1]), gate.quantile(u[1:-1], a.float()[1:-1]).to(dtype))
    for half, full in ((f(a), f(a.float())) for f in (gate.prob_open, gate.estimate, gate.mean)):
        assert torch.equal(half, full.to(dtype))


def test_float32_follows_float64(gate: Relaxation) -> None:
    a = torch.linspace(-20, 20, 81)
    for f in (gate.prob_open, gate.mean, lambda x: gate.kl(x, 0.7), lambda x: gate.cdf(0.4, x)):
        assert torch.allclose(f(a).double(), f(a.double()), rtol=2e-5, atol=2e-6)


def test_tails_keep_relative_accuracy() -> None:
    """A chance of 1e-20 is not rounded to zero, and the KL between two nearly closed gates is not rounding noise."""
    a = torch.tensor([-45.0, -40.0], dtype=torch.float32)
    exact = HardConcrete().prob_open(a.double())
    assert torch.allclose(HardConcrete().prob_open(a).double(), exact, rtol=1e-5, atol=0)
    assert (exact < 1e-15).all()
    for gate in (HardConcrete(), RectifiedLogistic(1.0)):
        kl = gate.kl(torch.tensor(-40.0, dtype=torch.float64), -40.001).item()
        assert kl == pytest.approx(gate.prob_open(torch.tensor(-40.0, dtype=torch.float64)).item() * 5e-7, rel=0.05)


def test_gradients(gate: Relaxation) -> None:
    a = torch.tensor([-3.1, -0.6, 0.2, 0.7, 1.9, 4.3], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([2.0, -0.6 + 1e-3, 1.2, -1.7, 1.9, -4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate.kl, (a, b))
    assert torch.autograd.gradcheck(gate.prob_open, (a,))
    assert torch.autograd.gradcheck(gate.mean, (a,))


def test_gradients_of_continuous_variables(continuous: Relaxation) -> None:
    a = torch.tensor([-1.1, 0.2, 0.7, 1.4], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.45, 0.32, 0.51, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: continuous.sample(v, p.detach()), (a,))
    assert torch.autograd.gradcheck(continuous.cdf, (p, a))
    assert torch.autograd.gradcheck(continuous.quantile, (p, a))


def test_kl_has_its_minimum_at_the_prior(gate: Relaxation) -> None:
    a = torch.linspace(-4, 4, 17, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gate.kl(a, a.detach()).sum(), a)
    assert gradient.abs().max() < 1e-12


def test_clipped_samples_have_no_gradient() -> None:
    a = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(HardConcrete().sample(a, torch.full((3,), 0.5)).sum(), a)
    assert gradient[0] == 0
    assert gradient[1] > 0
    assert gradient[2] == 0


def test_noise_margin_follows_the_type() -> None:
    a32, a64 = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    gate = Concrete(beta=1.0)
    assert gate.sample(a32, torch.zeros(1)).item() == pytest.approx(1e-6, rel=0.1)
    assert gate.sample(a64, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(1.8e-15, rel=0.1)


def test_values(gate: Relaxation) -> None:
    again = pickle.loads(pickle.dumps(gate))
    assert again == gate
    assert hash(again) == hash(gate)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.clamp = None
    assert type(gate)(**vars(gate)) == gate != type(gate)(clamp=(-1.0, 1.0))  # type: ignore[call-arg]


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Relaxation()  # type: ignore[abstract]


def test_positional_order() -> None:
    assert HardConcrete(0.5, -0.2, 1.3) == HardConcrete(beta=0.5, gamma=-0.2, zeta=1.3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HardConcrete(beta=0), "HardConcrete: beta=0"),
        (lambda: HardConcrete(beta=float("nan")), "beta=nan"),
        (lambda: HardConcrete(gamma=0.0), "gamma=0.0.*use Concrete"),
        (lambda: HardConcrete(zeta=1.0), "zeta=1.0"),
        (lambda: HardConcrete(zeta=float("inf")), "zeta=inf"),
        (lambda: HardConcrete(test="mean"), "'mean' is unknown"),  # type: ignore[arg-type]
        (lambda: HardConcrete(clamp=(1.0, -1.0)), r"clamp=\(1.0, -1.0\)"),
        (lambda: Concrete(beta=-1), "Concrete: beta=-1"),
        (lambda: Concrete(threshold=1.0), "threshold=1.0"),
        (lambda: RectifiedGaussian(0), "RectifiedGaussian: sigma=0"),
        (lambda: RectifiedLogistic(-0.1), "RectifiedLogistic: scale=-0.1"),
    ],
)
def test_refuses(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.1, 1.1, float("nan")])
def test_keep_must_be_a_probability(gate: Relaxation, keep: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"keep={keep}") + ".*strictly between 0 and 1"):
        gate.logits(keep)


def test_parameters_must_be_floating(gate: Relaxation) -> None:
    with pytest.raises(TypeError, match=r"torch.int64.*\(3,\).*float"):
        gate.prob_open(torch.zeros(3, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch loops over log_ndtr
def test_functions_vmap(gate: Relaxation) -> None:
    a = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)

    def loss(x: Tensor) -> Tensor:
        return (gate.kl(x, 0.3) + gate.prob_open(x)).sum()

    batched = torch.func.vmap(torch.func.grad(loss))(a)
    leaf = a.clone().requires_grad_()
    (direct,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(batched, direct)
